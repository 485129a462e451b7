"""Mutators of JSON: the config, the generation config, and any JSON file as text."""

from __future__ import annotations

import json
import sys
from random import Random
from typing import Any

from tests.corpus.model_dir import WEIGHTS, Expected, ModelDir

BOMB = "[" * 100_000 + "]" * 100_000
WRONG: list[Any] = ["x", "", [], {}, [1], -3, -1, 0.5, 12.5, True, 2**63, 10**9, 1e999, float("nan"), "\x1b[2J" * 100]
SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "max_position_embeddings"]  # fmt: skip


def config_sizes(rng: Random, model: ModelDir) -> None:
    field = rng.choice(SIZES)
    now = model.json()[field]
    model.change("config.json", **{field: rng.choice([*WRONG, 0, float(now), str(now), [now], -now])})


def config_numbers(rng: Random, model: ModelDir) -> None:
    wrong = ["x", "", [], {}, [1], -3, -0.5, True, 1e999, float("nan"), float("-inf"), "1e-5"]
    model.change("config.json", **{rng.choice(["rms_norm_eps", "rope_theta"]): rng.choice(wrong)})


def config_against_weights(rng: Random, model: ModelDir) -> None:
    field = rng.choice(["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"])
    now = model.json().get(field, 8)
    wrong = max(1, now + rng.choice([-8, -2, -1, 1, 2, 8, 64])) if rng.random() < 0.9 else 2 * now
    model.change("config.json", **{field: wrong})


def config_heads(rng: Random, model: ModelDir) -> Expected:
    """Some numbers of heads fit the same weights: another model, and we cannot know."""
    model.change("config.json", num_attention_heads=rng.randint(1, 40), num_key_value_heads=rng.randint(1, 8))
    return "any"


def config_fields_dropped(rng: Random, model: ModelDir) -> Expected:
    config = model.json()
    optional = "max_position_embeddings"
    needed = [*(size for size in SIZES if size != optional), "model_type"]
    field = rng.choice([*needed, optional, "rope_theta", "bos_token_id", "eos_token_id", "tie_word_embeddings"])
    if rng.random() < 0.5:
        del config[field]
    else:
        config[field] = None
    model.put("config.json", config)
    is_null = field in config  # as transformers, whose class says that it is a number
    return "reject" if field in (*needed, "tie_word_embeddings") or (field == optional and is_null) else "accept"


def config_types(rng: Random, model: ModelDir) -> None:
    names = ["rwkv", "LLAMA", "llama ", "", None, 7, ["llama"], {}, "../llama", "\x1b[31mllama", "llama\0",
             "x" * 70_000, "__class__", "t5", "bert", "llama4", True]  # fmt: skip
    model.change("config.json", model_type=rng.choice(names))


def config_of_another_family(rng: Random, model: ModelDir) -> Expected:
    """The same tensors under a family that might take them."""
    families = ["mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "granite", "smollm3", "olmo2", "gpt2",
                "mixtral", "cohere", "stablelm", "gpt_neox", "gpt_oss", "glm4", "starcoder2", "ministral3", "phi",
                "gptj"]  # fmt: skip
    model.change("config.json", model_type=rng.choice(families))
    return "any"


def config_unknown_mathematics(rng: Random, model: ModelDir) -> None:
    changes: list[dict[str, Any]] = [
        {"rope_scaling": {"type": "bogus", "factor": 2.0}}, {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": -1}}, {"rope_scaling": {"rope_type": "yarn", "factor": "x"}},
        {"rope_scaling": {"rope_type": ["yarn"]}}, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": [1]}, {"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}},
        {"rope_parameters": "x"}, {"hidden_act": "mish"}, {"hidden_act": 7}, {"attention_bias": True},
        {"attention_bias": "no"}, {"mlp_bias": True}, {"mlp_bias": 0}, {"tie_word_embeddings": "yes"},
        {"tie_word_embeddings": False}, {"partial_rotary_factor": 0.5},
        {"quantization_config": {"quant_method": "bogus"}}, {"quantization_config": {"quant_method": ["gptq"]}},
        {"quantization_config": []}, {"quantization_config": {}},
        {"quantization": {"bits": 4, "group_size": "x"}, "quantization_config": "x"}, {"head_dim": 0},
        {"head_dim": "8"}, {"head_dim": 7},
    ]  # fmt: skip
    model.change("config.json", **rng.choice(changes))


def config_unread(rng: Random, model: ModelDir) -> Expected:
    """Fields that change another architecture, and that no code of this one's reference class reads."""
    changes: list[dict[str, Any]] = [
        {"attn_logit_softcapping": 50.0},
        {"mystery": 1},
        {"\x1b[31m": "\u202e"},
        {"num_experts": 8},
    ]
    model.change("config.json", **rng.choice(changes))
    return "accept"


def config_extremes(rng: Random, model: ModelDir) -> Expected:
    """Numbers of the right type at the ends of their ranges, in what rotates and scales."""
    small = [5e-324, 1e-300, 1e-45, 1.0000000000000002, 1, 2]
    large = [1e9, 1e30, 1e38, 3.5e38, 1e300, sys.float_info.max, 2**24]

    def number() -> float:
        return rng.choice(small + large)

    fields = {
        "linear": ["factor"],
        "llama3": ["factor", "low_freq_factor", "high_freq_factor"],
        "yarn": ["factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"],
        "longrope": ["factor", "attention_factor"],
    }
    kind = rng.choice(sorted(fields))
    rope: dict[str, Any] = {"rope_type": kind} | {name: number() for name in fields[kind]}
    if rng.random() < 0.5:
        rope["original_max_position_embeddings"] = rng.choice([1, 2, 8, 256, 2**24])
    if kind == "longrope":
        rope |= {name: [number() for _ in range(4)] for name in ("short_factor", "long_factor")}
    changes = [
        {"rope_scaling": rope},
        {"rope_theta": number(), "rms_norm_eps": number()},
        {"model_type": "granite", "logits_scaling": number(), "embedding_multiplier": number(),
         "attention_multiplier": number(), "residual_multiplier": number()},
        {"model_type": "ministral3", "head_dim": 8, "rope_parameters": {**rope, "llama_4_scaling_beta": number()}},
        {"model_type": "mistral", "sliding_window": rng.choice([1, 2, 2**24])},
        {"max_position_embeddings": rng.choice([1, 2, 8, 2**24])},
    ]  # fmt: skip
    model.change("config.json", **rng.choice(changes[:1] * 4 + changes))
    return "any"


def config_harmless(rng: Random, model: ModelDir) -> Expected:
    changes: list[dict[str, Any]] = [
        {"architectures": ["Evil\x1b[2J"]}, {"torch_dtype": "float16"}, {"torch_dtype": 7}, {"head_dim": 8},
        {"attention_bias": False}, {"hidden_act": "silu"}, {"rope_scaling": None}, {"use_cache": "x"},
        {"id2label": {"0": "x" * 70_000}}, {"transformers_version": None}, {"_name_or_path": "../../x"},
        {"task_specific_params": {"a": [[[]]]}}, {"bos_token_id": None},
    ]  # fmt: skip
    model.change("config.json", **rng.choice(changes))
    return "accept"


def eos(rng: Random, model: ModelDir) -> None:
    wrong = [-1, 1.0, True, "2", {}, [2, "x"], [[2]], [2, None], [2, -1], 1e999, "<|im_end|>"]
    model.change(rng.choice(["config.json", "generation_config.json"]), eos_token_id=rng.choice(wrong))


def eos_elsewhere(rng: Random, model: ModelDir) -> Expected:
    fine = [0, [0, 1, 2], [], None, [2] * 10_000, 320, 10**9, 2**63]  # one outside the vocabulary never comes
    model.change(rng.choice(["config.json", "generation_config.json"]), eos_token_id=rng.choice(fine))
    return "accept"


def generation(rng: Random, model: ModelDir) -> None:
    changes: list[tuple[str, list[Any]]] = [
        ("temperature", ["hot", -1, [], {}, True, 1e999, float("nan")]),
        ("top_k", [1.5, -2, "x", [], True, float("nan")]),
        ("top_p", [-2, 2, "x", [], True, float("nan")]),
        ("min_p", [-0.5, 2, "x", {}, True]),
        ("typical_p", [0, -2, "x", {}, True]),
        ("repetition_penalty", [0, -1, 1e9, "x", [], True]),
    ]
    field, values = rng.choice(changes)
    model.change("generation_config.json", **{field: rng.choice(values)})


def generation_harmless(rng: Random, model: ModelDir) -> Expected:
    fields = [{"max_length": -5}, {"do_sample": "x"}, {"num_beams": 10**9}, {"temperature": 1e30}, {"top_k": 10**30},
              {"top_k": -1}, {"temperature": None}, {"\x1b": [BOMB[:100]]}, {"transformers_version": {}},
              {"temperature": 0}]  # fmt: skip
    model.change("generation_config.json", **rng.choice(fields))
    return "accept"


def json_damage(rng: Random, model: ModelDir) -> Expected:
    """Text that no JSON parser should accept, in any of the files that are read; one of them may also be left out."""
    name = rng.choice(["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
    text = model.files[name].decode()
    key = text[1 : text.index(":")]
    data = text.encode()
    model.files[name] = rng.choice([
        text[: rng.randrange(1, len(text) - 1)].encode(), f'{text[:-1]}, "bomb": {BOMB}}}'.encode(),
        f'{text[:-1]}, "bomb": {"9" * 5_000}}}'.encode(), f"{text[:-1]}, {key}: null}}".encode(), f"[{text}]".encode(),
        text.encode("utf-16"), data + b"\0", data + data, data.replace(b'"', b"'"), data[:-1] + b"\xff}",
        data[:-1] + b',"a":"\xed\xa0\x80"}', data[:-1] + b",}", b"// " + data, b"", b"null", b'"x"', b"17",
        b"9" * 100_000, b'"' + b"x" * 1_000_000, BOMB.encode(),
    ])  # fmt: skip
    return "either" if name == "generation_config.json" else "reject"


def json_oddities(rng: Random, model: ModelDir) -> Expected:
    """What JSON forbids and other readers take, where nothing reads it."""
    name = rng.choice(["config.json", "generation_config.json", "tokenizer_config.json"])
    text = model.files[name].decode()
    odd = rng.choice(["NaN", "-Infinity", "[Infinity]", '1, "transformers_version": 1'])
    model.files[name] = f'{text[:-1]}, "transformers_version": {odd}}}'.encode()
    return "accept"


def json_style(rng: Random, model: ModelDir) -> Expected:
    """The same JSON, formatted differently."""
    name = rng.choice(["config.json", "generation_config.json", "tokenizer_config.json"])
    content = model.json(name)
    match rng.randrange(4):
        case 0:
            model.files[name] = b"\xef\xbb\xbf" + model.files[name]
        case 1:
            model.files[name] = json.dumps(content, indent=40).encode()
        case 2:
            model.files[name] = json.dumps(dict(sorted(content.items(), reverse=True)), ensure_ascii=False).encode()
        case 3:
            model.files[name] = b" " * 1_000_000 + model.files[name] + b"\r\n\t" * 1000
    return "accept"


def json_too_large(rng: Random, model: ModelDir) -> None:
    name = rng.choice(["config.json", "generation_config.json", "tokenizer_config.json"])
    model.files[name] += b" " * (9 << 20)


def flips(rng: Random, model: ModelDir) -> Expected:
    name = rng.choice([name for name in model.files if name != WEIGHTS])
    data = bytearray(model.files[name])
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    model.files[name] = bytes(data)
    return "any"


def splices(rng: Random, model: ModelDir) -> Expected:
    """A piece of a JSON file removed, copied elsewhere, or repeated."""
    name = rng.choice([name for name in model.files if name != WEIGHTS])
    data = model.files[name]
    first, second = sorted(rng.randrange(len(data)) for _ in range(2))
    second = min(second, first + 200)
    piece, at = data[first:second], rng.randrange(len(data))
    model.files[name] = rng.choice(
        [data[:first] + data[second:], data[:at] + piece + data[at:], data[:at] + piece * 50]
    )
    return "any"


def value_swaps(rng: Random, model: ModelDir) -> Expected:
    """A value anywhere in a JSON file becomes one of another type."""
    name = rng.choice([name for name in model.files if name != WEIGHTS])
    content = model.json(name)
    container: Any = content
    while True:
        key = rng.choice(list(container)) if isinstance(container, dict) else rng.randrange(len(container))
        if not (isinstance(container[key], dict | list) and container[key] and rng.random() < 0.8):
            break
        container = container[key]
    container[key] = rng.choice(
        [*WRONG, None, "a" * 100_000, 2**32, 2**31, 18446744073709551616, -(2**63), "\ud800", [[[]]]]
    )
    model.put(name, content)
    return "any"


MUTATORS = [
    config_sizes, config_numbers, config_against_weights, config_heads, config_fields_dropped, config_types,
    config_of_another_family, config_unknown_mathematics, config_unread, config_extremes, config_harmless,
    eos, eos_elsewhere, generation, generation_harmless, json_damage, json_oddities, json_style, json_too_large,
    flips, splices, value_swaps,
]  # fmt: skip
