"""Every architecture's logits against transformers, from a GGUF file as it is; and that each case can fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import BrokenCheckpoint, GptcliError, UnsupportedArchitecture
from gptcli.gguf import architectures
from gptcli.gguf.architectures import ARCHITECTURES
from gptcli.gguf.reader import GgufFile
from tests.gguf import model_writer
from tests.gguf.model_writer import write_model
from tests.parity.reference import BASE, Reference, randomized, write_reference
from tests.parity.test_families import IDS, TOLERANCE, engine_of, relative_error

GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "tie_word_embeddings": True}
WINDOW = {"attention.sliding_window": 8}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
EXPERTS = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 24}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
YARN_FIELDS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
MINISTRAL = YARN | {"llama_4_scaling_beta": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    "partial_rotary_factor": 0.75,
}
OSS_YARN = YARN | {"rope_theta": 150000.0, "original_max_position_embeddings": 32, "truncate": False}
GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
MULTIPLIERS = {"embedding_scale": 6.0, "residual_scale": 0.3, "logit_scale": 4.0}
GRANITE = {
    "attention_multiplier": 0.25,
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 4.0,
}


@dataclass(frozen=True)
class Case:
    """A model of transformers, what its file says beside what every file says, and a change that must be noticed."""

    title: str
    architecture: str
    model_type: str
    breaks: dict[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


def llama3_factors() -> np.ndarray:
    """What the converter writes for LLAMA3, by transformers' own formula."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    return (plain / scaled).numpy().astype(np.float32)


LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 40,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
LATENT_FIELDS = {
    "attention.kv_lora_rank": 24,
    "attention.q_lora_rank": 40,
    "attention.key_length": 24,
    "attention.value_length": None,
    "rope.dimension_count": 8,
}
DEEPSEEK = LATENT | {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "n_group": 4,
    "topk_group": 2,
    "rope_parameters": YARN | {"mscale": 40.0, "mscale_all_dim": 40.0},
}
DEEPSEEK_FIELDS = (
    LATENT_FIELDS
    | YARN_FIELDS
    | {
        "attention.head_count_kv": 1,
        "attention.key_length": 32,
        "attention.value_length": 24,
        "attention.key_length_mla": 24,
        "attention.value_length_mla": 12,
        "rope.scaling.yarn_log_multiplier": 4.0,
        "expert_count": 8,
        "expert_used_count": 3,
        "expert_shared_count": 2,
        "expert_feed_forward_length": 24,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "expert_group_count": 4,
        "expert_group_used_count": 2,
        "leading_dense_block_count": 1,
    }
)
EPSILON = {"attention.layer_norm_rms_epsilon": 0.1}
LAYER_EPSILON = {"attention.layer_norm_epsilon": 0.1}
CASES = [
    Case("llama", "llama", "llama", EPSILON),
    Case("llama, wide heads", "llama", "llama", {"rope.freq_base": 5e5}, config={"head_dim": 32}),
    Case("llama, biases", "llama", "llama", EPSILON, config={"attention_bias": True, "mlp_bias": True}),
    Case(
        "llama, stored rope factors",
        "llama",
        "llama",
        {"rope.freq_base": 5e5},
        config={"rope_parameters": LLAMA3},
        tensors={"rope_freqs.weight": llama3_factors()},
    ),
    Case(
        "llama, linear rope",
        "llama",
        "llama",
        {"rope.scaling.factor": 2.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    Case(
        "llama, yarn",
        "llama",
        "llama",
        {"rope.scaling.yarn_attn_factor": 2.0},
        YARN_FIELDS,
        {"rope_parameters": YARN},
    ),
    Case(
        "mixtral",
        "llama",
        "mixtral",
        {"expert_used_count": 1},
        {"expert_count": 5, "expert_used_count": 2, "rope.freq_base": 1e6},
        {"num_local_experts": 5},
    ),
    Case(
        "ministral3",
        "mistral3",
        "ministral3",
        {"attention.temperature_scale": 0.1},
        YARN_FIELDS | {"attention.temperature_scale": 0.5, "rope.scaling.yarn_log_multiplier": 1.0},
        {"head_dim": 16, "rope_parameters": MINISTRAL},
    ),
    Case("qwen2", "qwen2", "qwen2", EPSILON),
    Case(
        "qwen2moe",
        "qwen2moe",
        "qwen2_moe",
        {"expert_used_count": 1},
        EXPERTS | {"expert_shared_feed_forward_length": 40},
        MOE | {"shared_expert_intermediate_size": 40},
    ),
    Case(
        "qwen2vl",
        "qwen2vl",
        "qwen2_vl_text",
        EPSILON,
        {"rope.dimension_sections": [2, 3, 3, 0]},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
    ),
    Case("qwen3", "qwen3", "qwen3", EPSILON, config={"head_dim": 32}),
    Case(
        "qwen3vl",
        "qwen3vl",
        "qwen3_vl_text",
        EPSILON,
        {"rope.dimension_sections": [6, 5, 5, 0], "n_deepstack_layers": 3},
        {
            "head_dim": 32,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
        },
    ),
    Case(
        "qwen3vlmoe",
        "qwen3vlmoe",
        "qwen3_moe",
        {"expert_used_count": 1},
        EXPERTS | {"rope.dimension_sections": [6, 5, 5, 0]},
        MOE | {"norm_topk_prob": True, "head_dim": 32},
    ),
    Case("internlm2", "internlm2", "llama", {"rope.freq_base": 5e5}),
    Case("xverse", "xverse", "llama", {"rope.freq_base": 5e5}),
    Case("ernie4_5", "ernie4_5", "ernie4_5", {"rope.freq_base": 1e4}, {"rope.freq_base": 5e5}, {"head_dim": 16}),
    Case("exaone", "exaone", "llama", {"rope.freq_base": 5e5}),
    Case("seed_oss", "seed_oss", "seed_oss", EPSILON, config={"head_dim": 32}),
    Case("minicpm", "minicpm", "granite", {"logit_scale": 2.0}, MULTIPLIERS, GRANITE),
    Case(
        "qwen3moe",
        "qwen3moe",
        "qwen3_moe",
        {"expert_used_count": 1},
        EXPERTS,
        MOE | {"norm_topk_prob": True, "head_dim": 32},
    ),
    Case("gemma", "gemma", "gemma", EPSILON, config={"head_dim": 32, "tie_word_embeddings": True}),
    Case(
        "gemma2",
        "gemma2",
        "gemma2",
        {"attn_logit_softcapping": 1.0},
        WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    Case(
        "gemma2, logits",
        "gemma2",
        "gemma2",
        {"final_logit_softcapping": 2.0},
        WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    Case(
        "gemma3",
        "gemma3",
        "gemma3_text",
        {"attention.sliding_window": 9},
        WINDOW | {"rope.freq_base": 1e6},
        GEMMA | {"num_hidden_layers": 7},
    ),
    Case(
        "gemma3, ropes",
        "gemma3",
        "gemma3_text",
        {"rope.scaling.factor": 4.0},
        WINDOW | {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        GEMMA | {"num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPES},
    ),
    Case(
        "phi2",
        "phi2",
        "phi",
        {"rope.dimension_count": 16},
        {"rope.dimension_count": 8},
        {"num_key_value_heads": 4},
    ),
    Case(
        "phi3",
        "phi3",
        "phi3",
        {"attention.sliding_window": 9},
        WINDOW,
        {"original_max_position_embeddings": 128, "sliding_window": 8},
    ),
    Case(
        "phi3, longrope",
        "phi3",
        "phi3",
        {"rope.scaling.attn_factor": 2.0},
        {
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(32))),
            "rope.dimension_count": 12,
        },
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
        {
            "rope_factors_short.weight": np.array(LONGROPE["short_factor"], np.float32),
            "rope_factors_long.weight": np.array(LONGROPE["long_factor"], np.float32),
        },
    ),
    Case("gptneox", "gptneox", "gpt_neox", {"use_parallel_residual": False}, {"rope.dimension_count": 4}),
    Case(
        "gptneox, one after the other",
        "gptneox",
        "gpt_neox",
        {"rope.dimension_count": 8},
        {"rope.dimension_count": 4, "use_parallel_residual": False},
        {"use_parallel_residual": False, "attention_bias": False},
    ),
    Case(
        "gpt2",
        "gpt2",
        "gpt2",
        LAYER_EPSILON,
        {"feed_forward_length": 256},
        {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "tie_word_embeddings": True},
    ),
    Case("starcoder2", "starcoder2", "starcoder2", LAYER_EPSILON, config={"sliding_window": None}),
    Case("stablelm", "stablelm", "stablelm", LAYER_EPSILON, {"rope.dimension_count": 4}),
    Case(
        "stablelm, every switch",
        "stablelm",
        "stablelm",
        {"rope.dimension_count": 8},
        {"rope.dimension_count": 4, "use_parallel_residual": True},
        {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
    ),
    Case("olmo", "olmo", "olmo", {"attention.clamp_kqv": 0.3}, {"attention.clamp_kqv": 0.5}, {"clip_qkv": 0.5}),
    Case("olmo2", "olmo2", "olmo2", EPSILON),
    Case(
        "olmo3",
        "olmo2",
        "olmo3",
        {"attention.sliding_window_pattern": [False, False, True, True]},
        WINDOW | {"attention.sliding_window_pattern": [True, True, True, False], "rope.freq_base": 5e5},
        {"sliding_window": 8},
    ),
    Case(
        "granite",
        "granite",
        "granite",
        {"residual_scale": 0.5},
        MULTIPLIERS | {"attention.scale": 0.1},
        GRANITE | {"attention_multiplier": 0.1},
    ),
    Case(
        "command-r",
        "command-r",
        "cohere",
        {"logit_scale": 0.5},
        {"logit_scale": 0.0625, "rope.freq_base": 5e5},
        {"tie_word_embeddings": True, "use_qk_norm": True},
    ),
    Case(
        "cohere2",
        "cohere2",
        "cohere2",
        {"attention.sliding_window": 9},
        WINDOW | {"logit_scale": 0.0625},
        {"sliding_window": 8, "tie_word_embeddings": True},
    ),
    Case("glm4", "glm4", "glm4", {"rope.dimension_count": 16}, {"rope.dimension_count": 8}, {"head_dim": 16}),
    Case("smollm3", "smollm3", "smollm3", EPSILON, {"rope.freq_base": 2e6}),
    Case("deepseek2", "deepseek2", "deepseek_v3", {"expert_group_used_count": 3}, DEEPSEEK_FIELDS, DEEPSEEK),
    Case(
        "deepseek2, the temperature of yarn",
        "deepseek2",
        "deepseek_v3",
        {"rope.scaling.yarn_log_multiplier": 1.0},
        DEEPSEEK_FIELDS | {"attention.q_lora_rank": None, "nextn_predict_layers": 0},
        DEEPSEEK | {"q_lora_rank": None},
    ),
    Case(
        "deepseek2, softmax",
        "deepseek2",
        "deepseek_v2",
        {"expert_weights_scale": 1.0},
        DEEPSEEK_FIELDS | {"expert_gating_func": 1, "expert_weights_norm": False},
        DEEPSEEK | {"topk_method": "group_limited_greedy"},
    ),
    Case(
        "minicpm3",
        "minicpm3",
        "minicpm3",
        EPSILON,
        LATENT_FIELDS,
        LATENT | {"v_head_dim": 16, "tie_word_embeddings": True},
    ),
    Case(
        "gpt-oss",
        "gpt-oss",
        "gpt_oss",
        {"attention.sliding_window": 9},
        WINDOW
        | YARN_FIELDS
        | {
            "expert_count": 6,
            "expert_used_count": 2,
            "expert_feed_forward_length": 112,
            "rope.freq_base": 150000.0,
            "rope.scaling.original_context_length": 32,
        },
        {
            "head_dim": 16,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": OSS_YARN,
        },
    ),
]


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


def written(case: Case, reference: Reference, path: Path, **changes: Any) -> Path:
    file = path / "model.gguf"
    config = reference.model.config.to_dict()
    write_model(reference.path, file, case.architecture, config, case.fields | changes, case.tensors)
    return file


def test_logits_are_those_of_transformers(case: Case, reference: Reference, tmp_path: Path) -> None:
    engine = engine_of(written(case, reference, tmp_path))
    assert relative_error(engine.logits(IDS), reference.logits(IDS)) < TOLERANCE


def test_logits_depend_on_what_the_file_says(case: Case, reference: Reference, tmp_path: Path) -> None:
    engine = engine_of(written(case, reference, tmp_path, **case.breaks))
    assert relative_error(engine.logits(IDS), reference.logits(IDS)) > 10 * TOLERANCE


def test_every_architecture_has_a_case() -> None:
    assert {case.architecture for case in CASES} == ARCHITECTURES.keys()


def llama(tmp_path: Path, **changes: Any) -> ModelFolder:
    case = CASES[0]
    reference = write_reference(tmp_path / "reference", case.model_type)
    return ModelFolder.open(written(case, reference, tmp_path, **changes))


def rewritten(tensors: dict[str, np.ndarray], layout: str) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a file as other converters lay them out."""
    for name, values in tensors.items():
        if layout == "experts apart" and "_exps." in name:
            for expert, part in enumerate(values):
                yield name.replace("_exps.", f".{expert}."), part
        elif layout == "q, k and v in one" and "attn_q." in name:
            parts = [tensors[name.replace("attn_q.", f"attn_{letter}.")] for letter in "qkv"]
            yield name.replace("attn_q.", "attn_qkv."), np.concatenate(parts)
        elif layout == "keys and values in one" and "attn_k_b." in name:
            heads = np.concatenate([values.swapaxes(1, 2), tensors[name.replace("_k_b.", "_v_b.")]], 1)
            yield name.replace("_k_b.", "_kv_b."), heads.reshape(-1, heads.shape[-1])
        elif layout == "keys and values in one" and "attn_v_b." in name:
            continue
        elif layout == "experts apart" or "attn_k." not in name and "attn_v." not in name:
            yield name, values


@pytest.mark.parametrize(
    ("title", "layout"),
    [
        ("mixtral", "experts apart"),
        ("phi2", "q, k and v in one"),
        ("llama, biases", "q, k and v in one"),
        ("qwen2", "q, k and v in one"),
        ("deepseek2", "keys and values in one"),
    ],
)
def test_other_layouts_of_tensors_have_the_same_logits(
    title: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.title == title)
    reference = write_reference(tmp_path / "reference", case.model_type, **case.config)
    plain = model_writer.tensors_of
    monkeypatch.setattr(model_writer, "tensors_of", lambda *given: dict(rewritten(plain(*given), layout)))
    file = written(case, reference, tmp_path)
    changed = {"blk.0.ffn_up.0.weight", "blk.0.attn_qkv.weight", "blk.0.attn_kv_b.weight"}
    assert changed & GgufFile(file).tensors.keys()
    assert relative_error(engine_of(file).logits(IDS), reference.logits(IDS)) < TOLERANCE


def test_layers_that_predict_further_ahead_stay_unread(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.title == "deepseek2")
    reference = write_reference(tmp_path / "reference", case.model_type, **case.config)
    ahead = replace(case, tensors={"blk.4.nextn.eh_proj.weight": np.ones((4, 4), np.float32)})
    file = written(ahead, reference, tmp_path, block_count=5, nextn_predict_layers=1)
    assert relative_error(engine_of(file).logits(IDS), reference.logits(IDS)) < TOLERANCE
    with pytest.raises(UnsupportedArchitecture, match="eh_proj"):
        _ = ModelFolder.open(written(ahead, reference, tmp_path, nextn_predict_layers=0)).architecture


def test_groups_that_an_old_file_does_not_name_are_known_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.title == "deepseek2")
    reference = write_reference(tmp_path / "reference", case.model_type, **case.config)
    file = written(case, reference, tmp_path, expert_group_count=None, expert_group_used_count=None)
    assert relative_error(engine_of(file).logits(IDS), reference.logits(IDS)) > 10 * TOLERANCE
    monkeypatch.setattr(architectures, "_GROUPS", {(4, 8): (4, 2)})
    assert relative_error(engine_of(file).logits(IDS), reference.logits(IDS)) < TOLERANCE


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rope.scaling.yarn_log_multiplier", None, "yarn_log_multiplier"),
        ("expert_count", 0, "without experts"),
        ("expert_gating_func", 1, "expert_gating_func"),
    ],
)
def test_latent_attention_is_read_as_it_is_known_or_refused(
    field: str, value: object, message: str, tmp_path: Path
) -> None:
    case = next(case for case in CASES if case.title == "deepseek2")
    reference = write_reference(tmp_path / "reference", case.model_type, **case.config)
    with pytest.raises(UnsupportedArchitecture, match=message):
        ModelFolder.open(written(case, reference, tmp_path, **{field: value}))


REFUSED: dict[str, tuple[dict[str, Any], type[GptcliError], str]] = {
    "partial rotary embeddings": ({"rope.dimension_count": 8}, UnsupportedArchitecture, "partial_rotary_factor"),
    "a window where there is none": ({"attention.sliding_window": 8}, UnsupportedArchitecture, "sliding_window"),
    "experts without their tensors": ({"expert_count": 4, "expert_used_count": 2}, BrokenCheckpoint, "missing"),
    "a scale of attention": ({"attention.scale": 0.5}, UnsupportedArchitecture, "attention.scale"),
    "sections of positions for images": (
        {"rope.dimension_sections": [2, 3, 3, 0]},
        UnsupportedArchitecture,
        "dimension_sections",
    ),
    "attention both ways": ({"attention.causal": False}, UnsupportedArchitecture, "attention.causal"),
    "a layer too many": ({"block_count": 3}, BrokenCheckpoint, "does not use"),
    "a layer too few": ({"block_count": 5}, BrokenCheckpoint, "missing"),
    "extrapolation of yarn": (
        YARN_FIELDS | {"rope.scaling.yarn_ext_factor": 0.5},
        UnsupportedArchitecture,
        "yarn_ext_factor",
    ),
}


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
    case = next(case for case in CASES if case.title == title)
    reference = write_reference(tmp_path / "reference", case.model_type, **case.config)
    with pytest.raises(UnsupportedArchitecture, match=field):
        ModelFolder.open(written(case, reference, tmp_path, **{field: value}))
