"""Open models of the GPT line: BLOOM, CodeGen, Falcon, MPT, OPT, StarCoder 1 and XGLM. Layer norms and plain MLPs.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.gpt import (
    GPT2,
    GPTJ,
    Fields,
    Names,
    gpt_architecture,
    gpt_attention,
    gpt_config,
    gpt_mlp,
    gptj_config,
)
from gptcli.checkpoint.families.layer_configs import activation, check_shared, with_blocks
from gptcli.checkpoint.families.parameters import Transform
from gptcli.checkpoint.recipes import (
    Architecture,
    HeadsToQkv,
    PairsToHalves,
    Product,
    Recipe,
    Sinusoids,
    Take,
    WithoutFirst,
    sources,
)
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import Alibi, MlpConfig, NormConfig

_BLOOM = Names(
    root="transformer.",
    layers="h",
    embed="word_embeddings",
    embedding_norm="word_embeddings_layernorm",
    final_norm="ln_f",
    head="lm_head",
    norms={"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    qkv=("self_attention.query_key_value",),
    out="self_attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
)
_FALCON = replace(_BLOOM, embedding_norm=None)
_MPT = Names(
    root="transformer.",
    layers="blocks",
    embed="wte",
    final_norm="norm_f",
    head="lm_head",
    norms={"attention_norm": "norm_1", "mlp_norm": "norm_2"},
    qkv=("attn.Wqkv",),
    out="attn.out_proj",
    up="ffn.up_proj",
    down="ffn.down_proj",
)
_OPT = Names(
    root="model.decoder.",
    layers="layers",
    embed="embed_tokens",
    positions="embed_positions",
    final_norm="final_layer_norm",
    head="lm_head",
    norms={"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"},
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    up="fc1",
    down="fc2",
)
_XGLM = replace(_OPT, root="model.", final_norm="layer_norm", unused_suffixes=("embed_positions.weights",))
_CODEGEN = replace(GPTJ, qkv=("attn.qkv_proj",), unused_suffixes=(".attn.causal_mask",))

_MOST_SINES = 1 << 27  # computed, so no file limits them; 16 times as many as in XGLM 7.5B

_OPT_FIELDS = Fields("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")
_XGLM_FIELDS = Fields("d_model", "attention_heads", "num_layers", "max_position_embeddings")
_MPT_FIELDS = Fields("d_model", "n_heads", "n_layers", "max_seq_len")


def bloom(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """BLOOM: scores by distance (ALiBi) instead of positions, and a norm of the embedding."""
    hf.expect("apply_residual_connection_post_layernorm", False)
    hf.ignore("slow_but_exact")  # the order of sums
    fields = Fields(_hidden(hf), "n_head", "n_layer", "seq_length")
    attention = replace(gpt_attention(hf, fields), alibi=Alibi())
    mlp = MlpConfig(width=4 * hf.integer(fields.hidden), activation="gelu_tanh", gated=False, bias=True)
    config = replace(gpt_config(hf, attention, mlp, fields), learned_positions=False, embedding_norm=True)
    return gpt_architecture(config, tensors, _BLOOM, rows=(partial(HeadsToQkv, groups=attention.heads),))


def codegen(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """CodeGen: GPT-J with q, v and k in one matrix, four groups of each."""
    config, rope = gptj_config(hf)
    heads = config.attentions[0].heads
    if heads % 4:
        raise BrokenCheckpoint(f"config.json: {heads} attention heads cannot be in 4 groups")

    def rows(fused: Recipe) -> Recipe:
        return PairsToHalves(HeadsToQkv(fused, groups=4, values_first=True), 2 * heads, rope.dim, others=heads)

    return gpt_architecture(config, tensors, _CODEGEN, rows=(rows,))


def falcon(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Falcon: attention and MLP in parallel, after one norm or two; one key-value head, or a few; RoPE or ALiBi."""
    fields = Fields(_hidden(hf), "num_attention_heads", "num_hidden_layers", "max_position_embeddings")
    new, parallel = hf.flag("new_decoder_architecture", False), hf.flag("parallel_attn", True)
    multi_query, bias = hf.flag("multi_query", True), hf.flag("bias", False)
    attention = replace(gpt_attention(hf, fields), qkv_bias=bias, out_bias=bias)
    heads = kv_heads = attention.heads
    if new:
        kv_heads = hf.heads_of("num_kv_heads", heads)
    elif multi_query:
        kv_heads = 1
    hf.ignore("num_kv_heads")
    check_shared(heads, kv_heads)
    if hf.flag("alibi", False):
        attention = replace(attention, kv_heads=kv_heads, alibi=Alibi(rounded=True))
        hf.ignore("rope_parameters", "rope_theta", "rope_scaling")
    else:
        attention = replace(attention, kv_heads=kv_heads, rope=hf.rope(attention.head_dim))
    width = hf.optional_integer("ffn_hidden_size") or 4 * hf.integer(fields.hidden)
    mlp = MlpConfig(width=width, activation=activation(hf, "activation", "gelu"), gated=False, bias=bias)
    config = replace(gpt_config(hf, attention, mlp, fields), learned_positions=False)
    two_norms = hf.integer("num_ln_in_parallel_attn", 2 if new else 1, high=2) == 2
    names = _FALCON
    if parallel and two_norms and new:
        config = with_blocks(config, residual="parallel")
        names = replace(names, norms={"attention_norm": "ln_attn", "mlp_norm": "ln_mlp"})
    elif parallel and not two_norms:
        config = with_blocks(config, residual="shared")
        names = replace(names, norms={"attention_norm": "input_layernorm"})
    elif parallel or new:
        raise UnsupportedArchitecture("config.json: no Falcon has these norms: see num_ln_in_parallel_attn")
    rows: tuple[Transform, ...] = ()
    if new or not multi_query:
        rows = (partial(HeadsToQkv, groups=kv_heads, queries=heads // kv_heads),)
    return gpt_architecture(config, tensors, names, rows=rows)


def gpt_bigcode(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """StarCoder 1 and SantaCoder: GPT-2 with one key-value head."""
    hf.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
    hf.expect("add_cross_attention", False)
    attention = gpt_attention(hf)
    if not hf.flag("scale_attn_weights", True):
        attention = replace(attention, scale=1.0)
    rows: tuple[Transform, ...] = (partial(HeadsToQkv, groups=attention.heads),)
    if hf.flag("multi_query", True):
        attention, rows = replace(attention, kv_heads=1), ()
    hf.expect("num_key_value_heads", attention.kv_heads)  # follows from multi_query
    config = gpt_config(hf, attention, gpt_mlp(hf, default_act="gelu_pytorch_tanh"))
    return gpt_architecture(config, tensors, GPT2, rows=rows)


def mpt(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """MPT: scores by distance (ALiBi) instead of positions, and no biases."""
    for field, harmless in _MPT_SWITCHES.items():
        hf.expect(field, harmless)
    hf.ignore("embedding_fraction", "learned_pos_emb", "init_device", "init_config", "emb_pdrop", "verbose")
    own = hf.section("attn_config") if hf.has("attn_config") else HfConfig({})
    for field, harmless in _MPT_ATTENTION_SWITCHES.items():
        own.expect(field, harmless)
    own.ignore("attn_impl")
    attention = replace(
        gpt_attention(hf, _MPT_FIELDS), qkv_bias=False, out_bias=False, clip=own.nonzero("clip_qkv"), alibi=Alibi()
    )
    attention = replace(attention, scale=own.number("softmax_scale", attention.scale))
    own.check_unread(hf.model_type)
    mlp = MlpConfig(width=4 * hf.integer("d_model"), activation="gelu", gated=False)
    norm = NormConfig(kind="layer", eps=hf.number("layer_norm_epsilon", 1e-5))
    config = replace(gpt_config(hf, attention, mlp, _MPT_FIELDS, norm=norm), learned_positions=False)
    return gpt_architecture(config, tensors, _MPT)


# What MPT's configs spell out and transformers takes for granted.
_MPT_SWITCHES: dict[str, object] = {
    "expansion_ratio": 4,
    "logit_scale": None,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
}
_MPT_ATTENTION_SWITCHES: dict[str, object] = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "prefix_lm": False,
    "qk_ln": False,
}


def opt(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """OPT and Galactica: learned positions, counted from 2; switches for biases, norms, and a projected embedding."""
    hf.ignore("dropout", "layerdrop", "init_std")
    bias, affine = hf.flag("enable_bias", True), hf.flag("layer_norm_elementwise_affine", True)
    before, no_final_norm = hf.flag("do_layer_norm_before", True), hf.flag("_remove_final_layer_norm", False)
    attention = replace(gpt_attention(hf, _OPT_FIELDS), qkv_bias=bias, out_bias=bias)
    act = activation(hf, "activation_function", "relu")
    mlp = MlpConfig(width=hf.integer("ffn_dim"), activation=act, gated=False, bias=bias)
    norm = NormConfig(kind="layer", eps=1e-5, weight=affine, bias=affine)
    config = gpt_config(hf, attention, mlp, _OPT_FIELDS, norm=norm)
    names = _OPT
    if not before:
        config = with_blocks(config, residual="after")
        names = replace(names, norms={f"post_{ours}": theirs for ours, theirs in _OPT.norms.items()})
    if no_final_norm or not before:
        config, names = replace(config, final_norm=False), replace(names, final_norm=None)
    architecture = gpt_architecture(config, tensors, names)
    parameters = dict(architecture.parameters)
    parameters["positions.weight"] = WithoutFirst(parameters["positions.weight"], 2)
    if hf.integer("word_embed_proj_dim", config.hidden_size) == config.hidden_size:
        return replace(architecture, parameters=parameters)
    embed = parameters["embed.weight"]
    root = sources(embed)[0].removesuffix("embed_tokens.weight")
    head = parameters.get("head.weight", embed)
    parameters["embed.weight"] = Product(embed, Take(f"{root}project_in.weight"), transposed=True)
    parameters["head.weight"] = Product(head, Take(f"{root}project_out.weight"))
    return replace(architecture, config=replace(architecture.config, tied_head=False), parameters=parameters)


def xglm(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """XGLM: positions as sines and cosines, and scaled embeddings."""
    hf.ignore("dropout", "layerdrop", "init_std", "activation_dropout")
    hf.expect("pad_token_id", 0, 1)  # the position of another one would be 0
    attention = gpt_attention(hf, _XGLM_FIELDS)
    act = activation(hf, "activation_function", "gelu")
    mlp = MlpConfig(width=hf.integer("ffn_dim"), activation=act, gated=False, bias=True)
    norm = NormConfig(kind="layer", eps=1e-5, bias=True)
    config = gpt_config(hf, attention, mlp, _XGLM_FIELDS, norm=norm)
    hidden = config.hidden_size
    if hidden % 2 or hidden < 4:
        raise BrokenCheckpoint(f"config.json: d_model {hidden} has no room for sines and cosines")
    if config.max_context * hidden > _MOST_SINES:
        raise BrokenCheckpoint(f"config.json: {config.max_context} positions of {hidden} numbers are too many")
    if hf.flag("scale_embedding", True):
        config = replace(config, embedding_scale=hidden**0.5)
    architecture = gpt_architecture(config, tensors, _XGLM)
    positions = Sinusoids(rows=config.max_context, columns=hidden, first=2)
    return replace(architecture, parameters={**architecture.parameters, "positions.weight": positions})


def _hidden(hf: HfConfig) -> str:
    """The field with the hidden size: early configs call it `n_embed`."""
    hf.ignore("hidden_size")
    return "hidden_size" if hf.optional_integer("n_embed") is None else "n_embed"
