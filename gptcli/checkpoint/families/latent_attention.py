"""Multi-head latent attention: its config from config.json, and the recipes of its parameters.

Source: transformers' modelling files of DeepSeek V2 and V3.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.config.rope_scaling import yarn_mscale
from gptcli.checkpoint.families.parameters import Parameters, Transform, unchanged
from gptcli.checkpoint.recipes import HeadRows, PairsToHalves, Take
from gptcli.errors import BrokenCheckpoint
from gptcli.model.config import LatentAttentionConfig, NormConfig

_NORM = NormConfig(kind="rms", eps=1e-6)  # of the latents, whatever rms_norm_eps is


def latent_attention(hf: HfConfig, *, value_dim: int = 128) -> LatentAttentionConfig:
    """The config of latent attention. value_dim: the default of `v_head_dim`."""
    heads, rope_dim = hf.heads_of("num_attention_heads"), hf.integer("qk_rope_head_dim", 64)
    plain_dim = hf.integer("qk_nope_head_dim", 128)
    hf.expect("num_key_value_heads", heads)
    hf.expect("head_dim", rope_dim)
    hf.expect("qk_head_dim", plain_dim + rope_dim)
    hf.expect("partial_rotary_factor", 1.0, 1)
    return LatentAttentionConfig(
        heads=heads,
        latent_dim=hf.integer("kv_lora_rank", 512),
        plain_dim=plain_dim,
        value_dim=hf.integer("v_head_dim", value_dim),
        scale=(plain_dim + rope_dim) ** -0.5 * _score_factor(hf),
        rope=hf.rope(rope_dim),
        norm=_NORM,
        query_rank=hf.optional_integer("q_lora_rank"),
        bias=hf.flag("attention_bias", False),
    )


def _score_factor(hf: HfConfig) -> float:
    """The factor of scores with a stretched RoPE. Call it before `HfConfig.rope`, which then accepts its fields."""
    weight, factor = hf.rope_extra("mscale_all_dim"), hf.rope_extra("factor")
    if weight is None or hf.rope_type == "default":
        return 1.0
    if factor is None:
        raise BrokenCheckpoint("config.json: rope: mscale_all_dim without a factor")
    mscale = yarn_mscale(factor, weight)
    return mscale * mscale  # ** raises an error for infinity


def latent_attention_parameters(
    parameters: Parameters,
    ours: str,
    theirs: str,
    attention: LatentAttentionConfig,
    tensors: Collection[str],
    pairs: bool,
) -> None:
    """Adds the recipes of one layer's attention. pairs: RoPE rotates neighbouring channels, not halves."""
    ours, theirs, dim = f"{ours}attention.", f"{theirs}self_attn.", attention.rope.dim
    query: Transform = unchanged
    key: Transform = unchanged
    if pairs:
        query = partial(PairsToHalves, heads=attention.heads, dim=dim, skipped=attention.plain_dim)
        key = partial(PairsToHalves, heads=1, dim=dim, skipped=attention.latent_dim)
    if attention.query_rank is None:
        parameters.linear(f"{ours}q", [f"{theirs}q_proj"], False, [query])
    else:
        parameters.linear(f"{ours}q_down", [f"{theirs}q_a_proj"], attention.bias)
        parameters.norm(f"{ours}q_norm", f"{theirs}q_a_layernorm", attention.norm)
        parameters.linear(f"{ours}q", [f"{theirs}q_b_proj"], False, [query])
    parameters.linear(f"{ours}latent", [f"{theirs}kv_a_proj_with_mqa"], attention.bias, [key])
    parameters.norm(f"{ours}latent_norm", f"{theirs}kv_a_layernorm", attention.norm)
    keys, values = f"{theirs}embed_q.weight", f"{theirs}unembed_out.weight"  # from MLX and from GGUF files
    parts = HeadRows(Take(keys), Take(values))
    parameters[f"{ours}kv.weight"] = parts if keys in tensors else Take(f"{theirs}kv_b_proj.weight")
    parameters.linear(f"{ours}out", [f"{theirs}o_proj"], attention.bias)
