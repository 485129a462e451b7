"""Models written as GGUF files and read back by us and by the gguf package; what GGUF cannot store is refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file, save_file

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import BrokenTokenizer, OutputError, UnsupportedArchitecture
from gptcli.export import gguf_file
from gptcli.export.ggml_rounding import rounded
from gptcli.export.gguf_file import write_model
from gptcli.export.gguf_tensors import WRITTEN_AS
from gptcli.gguf.blocks import decoded
from gptcli.language_model import LanguageModel
from gptcli.model_notes import Note
from gptcli.settings import RuntimeConfig
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.tokenizer import Tokenizer
from tests.gguf.architecture_cases import LLAMA3
from tests.gguf.model_writer import tensors_of
from tests.gguf.test_architectures import CASES, Case
from tests.gguf.tiny_gguf import WIDTH, Kind, imported, write_gguf, write_sentencepiece
from tests.parity.reference import Reference, write_reference
from tests.parity.test_families import engine_of
from tests.tiny import make_model, make_tokenizer

IDS = torch.randint(3, 320, (40,), generator=torch.Generator().manual_seed(1)).tolist()
STOPS = {"eos_token_id": [2, 0]}  # the tokens that end a text in every file
FEW = [5, 17, 200, 3, 99, 2, 150, 260]  # in the smallest vocabulary
FP32 = RuntimeConfig(device="cpu", dtype="fp32", quantize="none")
# Changes to cases that llama.cpp would not open.
OPENED: dict[str, dict[str, Any]] = {
    "gptneox, one after the other": {"attention_bias": True},
    "command-r": {"use_qk_norm": False},
    "olmoe": {"num_key_value_heads": 4},
    "dots1": {"num_key_value_heads": 4},
}
WRITTEN = [
    replace(case, config=case.config | OPENED.get(case.title, {}))
    for case in CASES
    if WRITTEN_AS.get(case.model_type) == case.architecture
    if case.title not in ("falcon, two norms", "exaone4")
]
ONE_EACH = list({case.architecture: case for case in WRITTEN}.values())


def reference_with_tokenizer(case: Case, path: Path) -> Reference:
    reference = write_reference(path, case.model_type, **({"vocab_size": 320} | case.config))
    make_tokenizer().save(str(path / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "generation_config.json").write_text(json.dumps(STOPS))
    return reference


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty directory."""
    (path := tmp_path / "out").mkdir()
    return path


def export(model: Path, file: Path, **options: Any) -> list[Note]:
    return write_model(ModelFolder.open(model), Tokenizer.open(model), "tiny", file, **options)


def test_every_architecture_that_is_written_has_a_case() -> None:
    assert {case.architecture for case in ONE_EACH} == {*WRITTEN_AS.values()}


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.architecture)
def test_a_file_has_the_logits_of_the_model_and_the_tensors_that_others_expect(case: Case, tmp_path: Path) -> None:
    reference = reference_with_tokenizer(case, tmp_path / "model")
    assert export(reference.path, tmp_path / "x.gguf") == []
    assert torch.equal(engine_of(tmp_path / "x.gguf").logits(IDS), engine_of(reference.path).logits(IDS))
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "x.gguf").tensors}
    wanted = tensors_of(reference.path, case.architecture, reference.model.config.to_dict())
    assert tensors.keys() - {name for name in tensors if name.startswith("rope_f")} == wanted.keys()
    for name, values in wanted.items():
        assert np.array_equal(tensors[name].data, values), name


SCALINGS = [case for case in CASES if "rope" in case.title or "longrope" in case.title or "every switch" in case.title]
NO_BLEND = {"rope_parameters": LLAMA3 | {"low_freq_factor": 1.5, "high_freq_factor": 1.5}}
SCALINGS.append(Case("llama3 without a blend", "llama", "llama", {}, config=NO_BLEND))


@pytest.mark.parametrize("case", SCALINGS, ids=lambda case: case.title)
def test_rope_scaling_and_switches_survive(case: Case, tmp_path: Path) -> None:
    reference = reference_with_tokenizer(case, tmp_path / "model")
    export(reference.path, tmp_path / "x.gguf")
    assert torch.equal(engine_of(tmp_path / "x.gguf").logits(IDS), engine_of(reference.path).logits(IDS))


REFUSED = {
    "an architecture that is only read": ("apertus", {}, "a model of type `apertus`"),
    "no architecture": ("gpt_neo", {}, "a model of type `gpt_neo`"),
    "a scale that files do not say": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 24},
         r"attention.scale = 0.17\d*, not 0.20"),
    "a magnitude of yarn": ("llama",
         {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.3}},
         "magnitude"),
    "another activation": ("mixtral", {"hidden_act": "gelu"}, "activation = silu, not gelu"),
    "two norms": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, "no tensor for .*ln_attn"),
    "a head that llama.cpp wants apart": ("olmo2", {"tie_word_embeddings": True}, "only with a head that is not"),
    "a head that a mixture wants apart": ("minimax_m2", {"tie_word_embeddings": True}, "only with a head that is not"),
    "a mixture in every other layer": ("ernie4_5_moe",
         {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_interval": 2}, r"blocks\[\d\].mlp"),
    "no layer with attention": ("lfm2", {"layer_types": ["conv"] * 4}, "no layer has attention"),
    "biases of convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2, "conv_bias": True},
         "with convolutions without biases"),
    "experts whose shares are scaled": ("lfm2_moe",
         {"layer_types": ["conv", "full_attention"] * 2, "routed_scaling_factor": 1.5},
         "shares of experts that are not scaled"),
    "a head that it wants shared": ("cohere2", {"tie_word_embeddings": False}, "a head that is the embedding"),
    "wide heads where it has none": ("qwen2", {"head_dim": 32}, "heads that together are as wide"),
    "no biases where it has some": ("starcoder2", {"use_bias": False}, "reads starcoder2 only with biases"),
    "no biases of q, k and v": ("gpt_neox", {"attention_bias": False}, "with biases"),
    "biases where it has none": ("arcee", {"mlp_bias": True}, "without biases behind attention or in MLPs"),
    "biases of q, k and v": ("falcon", {"bias": True}, "without biases"),
    "norms that it has in large models": ("cohere", {"use_qk_norm": True, "tie_word_embeddings": True},
         "with 64 layers or more"),
    "windows that it has in large models": ("exaone4", {"sliding_window": 8}, "with 64 layers, if some have windows"),
    "shared keys where it has none": ("olmoe", {"num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2},
         "as many heads for keys and values"),
    "norms without a name": ("phi", {"qk_layernorm": True}, "no tensor for .*q_layernorm"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_file_cannot_say_is_refused_by_name(what: str, tmp_path: Path, out: Path) -> None:
    model_type, config, message = REFUSED[what]
    case = replace(CASES[0], model_type=model_type, config=config)
    reference = reference_with_tokenizer(case, tmp_path / "model")
    with pytest.raises(UnsupportedArchitecture, match=message):
        export(reference.path, out / "x.gguf")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("model_type", ["mistral", "phi3"])
def test_a_window_that_files_do_not_say_or_llama_cpp_ignores_bounds_the_context(
    model_type: str, tmp_path: Path
) -> None:
    case = replace(CASES[0], model_type=model_type, config={"sliding_window": 48})
    reference = reference_with_tokenizer(case, tmp_path / "model")
    (note,) = export(reference.path, tmp_path / "x.gguf")
    assert "the context is 48 tokens" in str(note)
    assert torch.equal(engine_of(tmp_path / "x.gguf").logits(IDS), engine_of(reference.path).logits(IDS))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q5_0", "MXFP4", "Q6_K"])
def test_blocks_of_a_gguf_file_come_back_as_they_are(kind: str, tmp_path: Path) -> None:
    wide = kind == "Q6_K"
    kinds = {"ffn_down.weight": Kind.F32, "weight": Kind[kind]} if wide else Kind[kind]
    file = write_gguf(tmp_path / "a.gguf", kinds, width=256 if wide else WIDTH)
    export(file, tmp_path / "b.gguf")
    assert_same_tensors(file, tmp_path / "b.gguf")


def assert_same_tensors(*files: Path) -> None:
    first, second = ({each.name: each for each in GGUFReader(file).tensors} for file in files)
    assert first.keys() == second.keys()
    assert all(np.array_equal(each.data, second[name].data) for name, each in first.items())
    assert all(each.tensor_type == second[name].tensor_type for name, each in first.items())


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_blocks_survive_an_import_and_an_export(kind: Kind, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", kind)
    export(imported(file, tmp_path / "imported"), tmp_path / "b.gguf")
    assert_same_tensors(file, tmp_path / "b.gguf")


def test_weights_of_a_form_that_ggml_lacks_are_expanded_exactly_and_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", Kind.Q8_0)
    model = imported(file, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.biases"] *= np.float16(0.9)
    save_file(tensors, model / "model.safetensors")
    (note,) = export(model, tmp_path / "b.gguf")
    assert str(note) == "expanded, for ggml has no blocks of the form: 8 bits in groups of 32"
    assert torch.equal(engine_of(tmp_path / "b.gguf").logits(FEW), engine_of(model).logits(FEW))


def test_fields_are_what_the_gguf_package_reads(tiny_model: Path, tmp_path: Path) -> None:
    export(tiny_model, tmp_path / "x.gguf")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "x.gguf").fields.items()}
    tokenizer = Tokenizer.open(tiny_model)
    assert fields["general.architecture"] == "llama"
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "gpt-2"
    pieces = [tokenizer.piece(id) for id in range(tokenizer.size)]
    assert fields["tokenizer.ggml.tokens"] == pieces + [f"[PAD{id}]" for id in range(tokenizer.size, 320)]
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.chat_template"] == tokenizer.settings["chat_template"]
    assert "tokenizer.chat_template.tool_use" not in fields
    assert fields["general.file_type"] == 0


def test_a_template_for_tools_goes_into_the_file_and_comes_out_of_it(tmp_path: Path) -> None:
    path = make_model(tmp_path / "caller")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    export(path, tmp_path / "x.gguf")
    template = ChatTemplate.of_model(tmp_path / "x.gguf", Tokenizer.open(tmp_path / "x.gguf"))
    assert template.source == "{{ messages }}"
    assert template.with_tools is not None and template.with_tools.source == "{{ tools }}"


def test_a_tokenizer_that_splits_in_its_own_way_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    state = json.loads((model / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, state["pre_tokenizer"]]}
    (model / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(BrokenTokenizer, match="no way of splitting texts"):
        export(model, tmp_path / "x.gguf")


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_0", "Q6_K", "Q4_K"])
def test_rounded_blocks_are_those_of_llama_cpp_or_as_near(kind: str) -> None:
    values = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) * 0.05
    values[0, :256], values[1, :32] = 0, 0
    values[2], values[3] = values[2].abs(), -values[3].abs()
    data = rounded(values, kind).numpy()
    found = decoded(kind, data)
    assert np.array_equal(dequantize(data, GGMLQuantizationType[kind]), found)
    error = float(np.square(found - values.numpy()).mean() ** 0.5 / values.square().mean() ** 0.5)
    if kind.endswith("_K"):
        assert error < {"Q6_K": 0.019, "Q4_K": 0.075}[kind]
    else:
        assert np.array_equal(quantize(values.numpy(), GGMLQuantizationType[kind]), data)


@pytest.mark.parametrize("to", gguf_file.ROUNDINGS)
def test_a_quantized_file_is_near_the_model(to: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", hidden_size=256, intermediate_size=512)
    export(model, tmp_path / "x.gguf", to=to)
    kinds = {each.name: each.tensor_type.name for each in GGUFReader(tmp_path / "x.gguf").tensors}
    assert (kinds["blk.0.attn_q.weight"], kinds["token_embd.weight"]) == gguf_file.ROUNDINGS[to]
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    exact, found = engine_of(model).logits(IDS), engine_of(tmp_path / "x.gguf").logits(IDS)
    error = float((found - exact).norm() / exact.norm())
    assert 0 < error < {"q8_0": 0.05, "q6_k": 0.15, "q4_k": 0.4, "q4_0": 0.5}[to]


def test_rows_that_blocks_do_not_divide_are_of_a_narrower_type_with_a_note(tiny_model: Path, tmp_path: Path) -> None:
    note = export(tiny_model, tmp_path / "x.gguf", to="q4_k")[-1]
    kinds = {each.name: each.tensor_type.name for each in GGUFReader(tmp_path / "x.gguf").tensors}
    assert (kinds["blk.0.attn_q.weight"], kinds["token_embd.weight"]) == ("Q5_0", "Q8_0")
    assert kinds["blk.0.ffn_down.weight"] == "F32"  # 48 columns
    assert "blk.0.attn_q.weight" in note.names and "blk.0.attn_norm.weight" not in note.names


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tiny_model: Path, out: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match="MB are needed"):
        export(tiny_model, out / "x.gguf")
    assert list(out.iterdir()) == []


def test_a_pipe_is_not_replaced_and_a_link_is_followed(tiny_model: Path, tmp_path: Path) -> None:
    opened = ModelFolder.open(tiny_model), Tokenizer.open(tiny_model)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        write_model(*opened, "tiny", tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_model(*opened, "tiny", tmp_path / "link")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink() and (tmp_path / "target").is_file()


def test_an_interrupted_file_is_gone_and_the_old_one_stays(tiny_model: Path, out: Path) -> None:
    (out / "x.gguf").write_bytes(b"old")

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny_model, out / "x.gguf", on_progress=interrupt)
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("x.gguf", b"old")]


def test_a_chat_in_the_file_is_the_models(tiny_model: Path, tmp_path: Path) -> None:
    (note,) = export(tiny_model, tmp_path / "x.gguf")
    assert str(note) == "texts end at these too in the file: <|endoftext|>"
    one, other = LanguageModel.open(str(tiny_model), FP32), LanguageModel.open(str(tmp_path / "x.gguf"), FP32)
    assert other.stop_ids == one.stop_ids | {0}
    assert one.template.source == other.template.source
    text = "In a small town <|im_end|>\n  12 é"
    assert other.tokenizer.encode(text, special=True) == one.tokenizer.encode(text, special=True)


def test_a_tokenizer_that_composes_characters_is_written_with_a_note(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", generation_config=STOPS)
    state = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(state | {"normalizer": {"type": "NFC"}}))
    (note,) = export(model, tmp_path / "x.gguf")
    assert "composes characters (NFC)" in str(note)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_comes_back_from_scores(prefix: bool, tmp_path: Path) -> None:
    pieces = ["▁t", "he", "▁the", "in", "▁town", "▁to", "wn", "▁", *"thewnio"]
    file = write_sentencepiece(tmp_path / "a.gguf", pieces, prefix=prefix)
    export(imported(file, tmp_path / "model"), tmp_path / "b.gguf")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "b.gguf").fields.items()}
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.add_space_prefix"]) == ("llama", prefix)
    first, second = Tokenizer.open(file), Tokenizer.open(tmp_path / "b.gguf")
    text = "the town in  the town\n<user> é"
    assert first.encode(text) == second.encode(text)
    assert first.difference(second) is None
