"""Models of an architecture that llama.cpp does not open, though a file could describe them. Source: its loaders."""

from __future__ import annotations

from gptcli.model.config import AttentionConfig, DecoderConfig, MlpConfig, MoeConfig, ShortConvolutionConfig

WITHOUT_WINDOWS = frozenset({"phi3"})  # whose windows it ignores
_LARGE = 64  # layers of models that it recognises by their number
_OWN_HEAD = frozenset("qwen2moe phi2 gptneox stablelm olmo2 olmoe gpt-oss nemotron dots1 minimax-m2".split())
_TIED_HEAD = frozenset({"gemma", "gemma2", "command-r", "cohere2"})
_NARROW = frozenset(
    """
    qwen2 qwen2moe phi2 phi3 gptneox gpt2 starcoder2 stablelm olmo olmo2 olmoe command-r cohere2 nemotron exaone4
    chatglm bloom falcon mpt starcoder
    """.split()
)
_BIASED = frozenset({"phi2", "gptneox", "gpt2", "starcoder2", "bloom", "starcoder"})
_BIASED_OR_NOT = frozenset({"llama", "mistral3", "granite", "nemotron", "mpt"})


def condition_of_llama_cpp(name: str, config: DecoderConfig) -> str | None:
    """The condition that a decoder misses for llama.cpp to compute the same as architecture `name`; None if none."""
    blocks, attention, mlp = config.blocks, config.attentions[0], config.blocks[0].mlp
    layers = len(blocks)
    assert isinstance(attention, AttentionConfig)
    mlp_bias = isinstance(mlp, MlpConfig) and mlp.bias
    biased = _BIASED | {"gpt-oss"}
    if name in _OWN_HEAD and config.tied_head:
        return "with a head that is not the embedding"
    if name in _TIED_HEAD and not config.tied_head:
        return "with a head that is the embedding"
    if name in _NARROW and attention.heads * attention.head_dim != config.hidden_size:
        return "with heads that together are as wide as a layer's input"
    if (name in biased and not attention.out_bias) or (name in _BIASED and not mlp_bias):
        return "with biases"
    if name not in biased | _BIASED_OR_NOT and (attention.out_bias or mlp_bias):
        return "without biases behind attention or in MLPs"
    match name:
        case "falcon" if attention.qkv_bias:
            return "without biases"
        case "gptneox" | "gpt2" | "bloom" | "starcoder" if not attention.qkv_bias:
            return "with biases of queries, keys and values"
        case "command-r" if attention.qk_norm is not None and layers < _LARGE:
            return f"with {_LARGE} layers or more, if queries and keys have norms"
        case "exaone4" if layers != _LARGE and any(each.window for each in config.attentions):
            return f"with {_LARGE} layers, if some have windows"
        case "olmoe" | "dots1" if attention.kv_heads != attention.heads:
            return "with as many heads for keys and values as for queries"
        case "lfm2" | "lfm2moe" if any(
            isinstance(each.state, ShortConvolutionConfig) and each.state.bias for each in blocks
        ):
            return "with convolutions without biases"
        case "lfm2moe" if any(isinstance(each.mlp, MoeConfig) and each.mlp.scale != 1 for each in blocks):
            return "with shares of experts that are not scaled"
    return None
