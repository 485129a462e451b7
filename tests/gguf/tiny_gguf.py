"""Writes tiny llama GGUF files: any type of block, any pre-tokenizer, any field changed or left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from gptcli.gguf.convert import convert

Kind = GGMLQuantizationType
WIDTH, HEADS, KV_HEADS, MLP, LAYERS = 64, 4, 2, 96, 2
HEAD_DIM = WIDTH // HEADS
EOS, BOS = "<|im_end|>", "<|im_start|>"


def byte_letters() -> list[str]:
    """GPT-2's alphabet: one printable character per byte, in order of bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("1", "2"), ("Ġ", "Ġ"), ("'", "s"), ("Ċ", "Ċ"), ("r", "e")]
CONTROL = ["<|endoftext|>", BOS, EOS]
PRE_TOKENIZERS = (
    *("gpt-2", "smollm", "llama-bpe", "qwen2", "falcon", "default", "gpt-4o", "tekken"),
    *("deepseek-llm", "deepseek-coder", "deepseek-v3", "qwen35"),
    *("minicpm5", "seed-coder", "kimi-k2", "bloom", "viking"),
)  # one of each group that splits alike
TOKENS = [*CONTROL, *byte_letters(), *("".join(merge) for merge in MERGES)]


def fields(pre: str = "smollm", width: int = WIDTH, **changes: Any) -> dict[str, Any]:
    """All fields of a tiny file. Changes are by name, with `__` for a dot; None leaves a field out."""
    result = {
        "general.architecture": "llama", "llama.context_length": 64, "llama.embedding_length": width,
        "llama.block_count": LAYERS, "llama.feed_forward_length": MLP, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0, "llama.rope.dimension_count": width // HEADS,
        "llama.vocab_size": len(TOKENS), "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(TOKENS) - 3)],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in MERGES], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }  # fmt: skip
    result |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in result.items() if value is not None}


def shapes(tied: bool = True, width: int = WIDTH, vocabulary: int = len(TOKENS)) -> dict[str, tuple[int, ...]]:
    """The shapes of a tiny llama's tensors by their GGUF names."""
    kv = width // HEADS * KV_HEADS
    result: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    if not tied:
        result["output.weight"] = (vocabulary, width)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        result |= {
            f"{block}attn_norm.weight": (width,),
            f"{block}ffn_norm.weight": (width,),
            f"{block}attn_q.weight": (width, width),
            f"{block}attn_k.weight": (kv, width),
            f"{block}attn_v.weight": (kv, width),
            f"{block}attn_output.weight": (width, width),
            f"{block}ffn_gate.weight": (MLP, width),
            f"{block}ffn_up.weight": (MLP, width),
            f"{block}ffn_down.weight": (width, MLP),
        }
    return result


def random_blocks(shape: tuple[int, ...], kind: Kind, seed: int) -> np.ndarray:
    """Random weights as bytes of blocks. K-quants are random bytes: the gguf package cannot quantize to them."""
    random = np.random.default_rng(seed)
    weights = random.normal(0, 0.3, shape).astype(np.float32)
    try:
        return quantize(weights, kind)
    except NotImplementedError:
        assert kind == Kind.Q6_K
        columns, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // columns, size), dtype=np.uint8)
        blocks[..., -2:] = np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)  # the scale of all
        return blocks.reshape(*shape[:-1], -1)


def write_gguf(
    path: Path,
    kinds: Kind | dict[str, Kind] = Kind.F32,
    *,
    tied: bool = True,
    tensors: dict[str, np.ndarray | tuple[np.ndarray, Kind]] | None = None,
    tensor_shapes: dict[str, tuple[int, ...]] | None = None,
    pre: str = "smollm",
    width: int = WIDTH,
    **changes: Any,
) -> Path:
    """Writes a file with random matrices of one kind, or of kinds by the end of their names; norms are F32.

    `tensors` replace those of the same names or are added; `changes` are as in `fields`.
    """
    writer = GGUFWriter(path, "llama")
    for name, value in fields(pre, width, **changes).items():
        if name == "general.architecture":
            writer.kv_data[0][name].value = value
        elif name == "general.alignment":
            writer.add_custom_alignment(value)
        else:
            add_field(writer, name, value)
    chosen: dict[str, np.ndarray | tuple[np.ndarray, Kind]] = {}
    for seed, (name, shape) in enumerate((tensor_shapes or shapes(tied, width)).items()):
        kind = Kind.F32 if len(shape) == 1 else _kind_of(name, kinds)
        chosen[name] = random_blocks(shape, kind, seed), kind
    for name, value in (chosen | (tensors or {})).items():
        data, kind = value if isinstance(value, tuple) else (value, Kind.F32)
        writer.add_tensor(name, data, raw_dtype=kind)
    finish(writer)
    return path


def finish(writer: GGUFWriter) -> None:
    """Writes the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def imported(file: Path, target: Path) -> Path:
    """A file converted to a new directory."""
    target.mkdir()
    convert(file, target, lambda done, total: None)
    return target


def write_vocabulary(path: Path, pre: str, merges: list[tuple[str, str]]) -> Path:
    """Writes a tiny file whose vocabulary is control tokens, bytes and the results of these merges."""
    tokens = [*CONTROL, *byte_letters(), *("".join(merge) for merge in merges)]
    return write_gguf(
        path,
        pre=pre,
        tensor_shapes=shapes(vocabulary=len(tokens)),
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__token_type=[3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)),
        tokenizer__ggml__merges=[" ".join(merge) for merge in merges],
        llama__vocab_size=len(tokens),
    )


def write_sentencepiece(path: Path, pieces: list[str], *, prefix: bool, model: str = "llama") -> Path:
    """Writes a tiny file with a SentencePiece vocabulary: bytes, and pieces, the best first.

    model: `gemma4` has the merges of all pairs that make a piece, too.
    """
    merges = [
        f"{piece[:at]} {piece[at:]}"
        for piece in pieces
        for at in range(1, len(piece))
        if {piece[:at], piece[at:]} <= {*pieces}
    ]
    control = ["<unk>", "<s>", "</s>", *CONTROL]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), "<user>", "  two", *pieces]
    types = [2, *[3] * (len(control) - 1), *[6] * 256, 4, 4, *[1] * len(pieces)]
    return write_gguf(
        path,
        tensor_shapes=shapes(vocabulary=len(tokens)),
        tokenizer__ggml__model=model,
        tokenizer__ggml__pre="default",
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__scores=[0.0] * (len(control) + 258) + [float(-rank) for rank in range(len(pieces))],
        tokenizer__ggml__token_type=types,
        tokenizer__ggml__merges=merges if model == "gemma4" else None,
        tokenizer__ggml__add_bos_token=True,
        tokenizer__ggml__add_space_prefix=prefix,
        llama__vocab_size=len(tokens),
    )


def _kind_of(name: str, kinds: Kind | dict[str, Kind]) -> Kind:
    if isinstance(kinds, Kind):
        return kinds
    return next((kind for end, kind in kinds.items() if name.endswith(end)), Kind.F32)


def add_field(writer: GGUFWriter, name: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case list():
            writer.add_array(name, value)
