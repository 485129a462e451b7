"""Every architecture's logits against transformers, from GGUF files; each case can fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import BrokenCheckpoint, GptcliError, UnsupportedArchitecture
from gptcli.gguf.families import latent_attention
from gptcli.gguf.families.registry import ARCHITECTURES
from gptcli.gguf.reader import GgufFile
from tests.gguf import model_writer, tiny_gguf
from tests.gguf.architecture_cases import CASES, YARN_FIELDS, Case
from tests.gguf.model_writer import write_model
from tests.gguf.tiny_gguf import TOKENS, add_field, imported
from tests.parity.reference import BASE, Reference, randomized, write_reference
from tests.parity.test_families import IDS, TOLERANCE, engine_of, relative_error


class TextModel(torch.nn.Module):
    """The decoder of a model that reads images, with a head."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.model = config, AutoModel.from_config(config, attn_implementation="eager")
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.lm_head(self.model(ids).last_hidden_state))


def write_text_reference(path: Path, model_type: str, **overrides: Any) -> Reference:
    """As write_reference, for a TextModel."""
    model = randomized(TextModel(AutoConfig.for_model(model_type, **(BASE | overrides))))
    save_file({name: values.clone() for name, values in model.state_dict().items()}, path / "model.safetensors")
    return Reference(path, model)


@pytest.fixture(scope="module", params=CASES, ids=[case.title for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def reference(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    write = write_text_reference if case.model_type.endswith("vl_text") else write_reference
    return write(tmp_path_factory.mktemp("reference"), case.model_type, **case.config)


@pytest.fixture(scope="module")
def wanted(reference: Reference) -> torch.Tensor:
    """The reference's logits."""
    return reference.logits(IDS)


def written(case: Case, reference: Reference, path: Path, **changes: Any) -> Path:
    file = path / "model.gguf"
    config = reference.model.config.to_dict()
    write_model(reference.path, file, case.architecture, config, case.fields | changes, case.tensors)
    return file


def chosen(title: str, path: Path) -> tuple[Case, Reference]:
    """The case of this title, and its reference, written below a path."""
    case = next(case for case in CASES if case.title == title)
    return case, write_reference(path / "reference", case.model_type, **case.config)


def test_logits_are_those_of_transformers(
    case: Case, reference: Reference, wanted: torch.Tensor, tmp_path: Path
) -> None:
    file = written(case, reference, tmp_path)
    assert relative_error(engine_of(file).logits(IDS), wanted) < TOLERANCE


def test_logits_depend_on_what_the_file_says(
    case: Case, reference: Reference, wanted: torch.Tensor, tmp_path: Path
) -> None:
    engine = engine_of(written(case, reference, tmp_path, **case.breaks))
    assert relative_error(engine.logits(IDS), wanted) > 10 * TOLERANCE


def test_a_kept_header_says_what_the_file_says(case: Case, reference: Reference, tmp_path: Path) -> None:
    read = ModelFolder.open(written(case, reference, tmp_path))
    _ = read.architecture, read.notes
    read.keep()
    kept = ModelFolder.open(read.path)
    assert (read.gguf is not None, kept.gguf) == (True, None)
    assert kept == read == replace(ModelFolder._open_gguf(read.path), unwritten=read.unwritten)


def test_every_architecture_has_a_case() -> None:
    assert {case.architecture for case in CASES} == ARCHITECTURES.keys()


def llama(tmp_path: Path, **changes: Any) -> ModelFolder:
    case = CASES[0]
    reference = write_reference(tmp_path / "reference", case.model_type)
    return ModelFolder.open(written(case, reference, tmp_path, **changes))


def rewritten(tensors: dict[str, np.ndarray], layout: str) -> Iterator[tuple[str, np.ndarray]]:
    """A file's tensors in the layout of another converter."""
    for name, values in tensors.items():
        if layout == "experts apart" and "_exps." in name:
            for expert, part in enumerate(values):
                yield name.replace("_exps.", f".{expert}."), part
        elif layout == "gate and up in one" and "ffn_gate_exps" in name:
            up = tensors[name.replace("gate", "up")]
            yield name.replace("gate", "gate_up"), np.concatenate([values, up], 1)
        elif layout == "gate and up in one" and "ffn_up_exps" in name:
            continue
        elif layout == "q, k and v in one" and "attn_q." in name:
            parts = [tensors[name.replace("attn_q.", f"attn_{letter}.")] for letter in "qkv"]
            yield name.replace("attn_q.", "attn_qkv."), np.concatenate(parts)
        elif layout == "keys and values in one" and "attn_k_b." in name:
            heads = np.concatenate([values.swapaxes(1, 2), tensors[name.replace("_k_b.", "_v_b.")]], 1)
            yield name.replace("_k_b.", "_kv_b."), heads.reshape(-1, heads.shape[-1])
        elif layout == "keys and values in one" and "attn_v_b." in name:
            continue
        elif layout in ("experts apart", "gate and up in one") or "attn_k." not in name and "attn_v." not in name:
            yield name, values


@pytest.mark.parametrize(("title", "layout"), [
    ("mixtral", "experts apart"),
    ("phi2", "q, k and v in one"),
    ("llama, biases", "q, k and v in one"),
    ("qwen2", "q, k and v in one"),
    ("deepseek2", "keys and values in one"),
    ("qwen3next", "gate and up in one"),
])  # fmt: skip
def test_other_layouts_of_tensors_have_the_same_logits(
    title: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, reference = chosen(title, tmp_path)
    plain = model_writer.tensors_of
    monkeypatch.setattr(model_writer, "tensors_of", lambda *given: dict(rewritten(plain(*given), layout)))
    file = written(case, reference, tmp_path)
    changed = {f"blk.0.{name}.weight" for name in ("ffn_up.0", "attn_qkv", "attn_kv_b", "ffn_gate_up_exps")}
    assert changed & GgufFile(file).tensors.keys()
    assert relative_error(engine_of(file).logits(IDS), reference.logits(IDS)) < TOLERANCE


def test_layers_that_predict_further_ahead_stay_unread(tmp_path: Path) -> None:
    case, reference = chosen("deepseek2", tmp_path)
    ahead = replace(case, tensors={"blk.4.nextn.eh_proj.weight": np.ones((4, 4), np.float32)})
    file = written(ahead, reference, tmp_path, block_count=5, nextn_predict_layers=1)
    assert relative_error(engine_of(file).logits(IDS), reference.logits(IDS)) < TOLERANCE
    assert [str(note) for note in ModelFolder.open(file).notes] == [
        "layers that predict tokens further ahead, and that nothing uses: blk.4"
    ]
    with pytest.raises(UnsupportedArchitecture, match="eh_proj"):
        _ = ModelFolder.open(written(ahead, reference, tmp_path, nextn_predict_layers=0)).architecture


def test_groups_that_an_old_file_does_not_name_are_known_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, reference = chosen("deepseek2", tmp_path)
    file = written(case, reference, tmp_path, expert_group_count=None, expert_group_used_count=None)
    assert relative_error(engine_of(file).logits(IDS), reference.logits(IDS)) > 10 * TOLERANCE
    monkeypatch.setattr(latent_attention, "_GROUPS", {(4, 8): (4, 2)})
    assert relative_error(engine_of(file).logits(IDS), reference.logits(IDS)) < TOLERANCE


@pytest.mark.parametrize(("field", "value", "message"), [
    ("rope.scaling.yarn_log_multiplier", None, "yarn_log_multiplier"),
    ("expert_count", 0, "without experts"),
    ("expert_gating_func", 1, "expert_gating_func"),
])  # fmt: skip
def test_latent_attention_is_read_as_it_is_known_or_refused(
    field: str, value: object, message: str, tmp_path: Path
) -> None:
    case, reference = chosen("deepseek2", tmp_path)
    with pytest.raises(UnsupportedArchitecture, match=message):
        ModelFolder.open(written(case, reference, tmp_path, **{field: value}))


def test_a_llama4_has_the_chunks_and_scales_that_its_file_leaves_out(tmp_path: Path) -> None:
    case, reference = chosen("llama4", tmp_path)
    file = ModelFolder.open(written(case, reference, tmp_path))
    assert file.architecture.config == ModelFolder.open(reference.path).architecture.config
    with pytest.raises(UnsupportedArchitecture, match="sliding_window"):
        ModelFolder.open(written(case, reference, tmp_path, **{"attention.sliding_window": 0}))


REFUSED: dict[str, tuple[dict[str, Any], type[GptcliError], str]] = {
    "partial rotary embeddings": ({"rope.dimension_count": 8}, UnsupportedArchitecture, "partial_rotary_factor"),
    "a window where there is none": ({"attention.sliding_window": 8}, UnsupportedArchitecture, "sliding_window"),
    "experts without their tensors": ({"expert_count": 4, "expert_used_count": 2}, BrokenCheckpoint, "missing"),
    "a scale of attention": ({"attention.scale": 0.5}, UnsupportedArchitecture, "attention.scale"),
    "sections of positions for images": ({"rope.dimension_sections": [2, 3, 3, 0]}, UnsupportedArchitecture,
         "dimension_sections"),
    "attention both ways": ({"attention.causal": False}, UnsupportedArchitecture, "attention.causal"),
    "heads without channels": ({"attention.key_length": 0, "attention.value_length": 0}, BrokenCheckpoint,
         "heads of 0 channels"),
    "a layer too many": ({"block_count": 3}, BrokenCheckpoint, "does not use"),
    "a layer too few": ({"block_count": 5}, BrokenCheckpoint, "missing"),
    "scaling without a type": ({"rope.scale_linear": 4.0}, UnsupportedArchitecture, "scale_linear"),
    "extrapolation of yarn": (YARN_FIELDS | {"rope.scaling.yarn_ext_factor": 0.5}, UnsupportedArchitecture,
         "yarn_ext_factor"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_change_the_numbers_is_refused_by_name(what: str, tmp_path: Path) -> None:
    changes, error, message = REFUSED[what]
    with pytest.raises(error, match=message) as raised:
        _ = llama(tmp_path, **changes).architecture
    assert type(raised.value) is error


def test_fields_that_compute_nothing_are_left_over(tmp_path: Path) -> None:
    folder = llama(tmp_path, **{"attention.causal": True, "vocab_size": 96, "training.steps": 5})
    assert [str(note) for note in folder.notes] == ["fields that nothing reads: llama.training.steps"]


def test_models_that_read_images_get_text_alone_with_a_note(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.title == "qwen2vl")
    file = written(case, write_text_reference(tmp_path, case.model_type, **case.config), tmp_path)
    assert [str(note) for note in ModelFolder.open(file).notes] == [
        "text alone goes in, though the model reads images too"
    ]


@pytest.mark.parametrize(
    ("title", "field", "value"),
    [("minicpm", "embedding_scale", None), ("granite", "rope.scaling.finetuned", False)],
    ids=["multipliers that are missing", "a model without RoPE"],
)
def test_what_a_file_leaves_open_is_refused(title: str, field: str, value: object, tmp_path: Path) -> None:
    case, reference = chosen(title, tmp_path)
    with pytest.raises(UnsupportedArchitecture, match=field):
        ModelFolder.open(written(case, reference, tmp_path, **{field: value}))


def test_an_imported_qwen35_has_its_value_heads_where_transformers_has_them(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.title == "qwen35")
    reference = write_reference(tmp_path / "reference", case.model_type, **case.config, vocab_size=len(TOKENS))

    def with_tokens(writer: GGUFWriter) -> None:
        for name, value in tiny_gguf.fields().items():
            if name.startswith("tokenizer."):
                add_field(writer, name, value)

    file = tmp_path / "model.gguf"
    config = reference.model.config.to_dict()
    write_model(reference.path, file, case.architecture, config, case.fields, case.tensors, with_tokens)
    target = imported(file, tmp_path / "imported")
    found, original = (load_file(path / "model.safetensors") for path in (target, reference.path))
    assert found.keys() == original.keys()
    for name, values in original.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert relative_error(engine_of(target).logits(IDS), reference.logits(IDS)) < TOLERANCE
