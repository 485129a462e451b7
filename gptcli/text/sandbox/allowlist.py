"""The tokenizers and templates that need no sandbox: known by hash, or tokenizers made of harmless components.

A harmless tokenizer opens, and encodes any text, in time and memory proportional to its size, and does not crash the
tokenizers library. Others run in the process that `client.py` starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gptcli.gguf.pre_tokenizers import LAST_SPACES, SPLITTERS

_Check = Callable[[Mapping[str, Any]], bool]

# SHA-256 of the template's source in UTF-8, as it comes with these models.
TRUSTED_TEMPLATES = frozenset(
    {
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",  # smollm2-135m-instruct
        "b6835114b7303ddd78919a82e4d9f7d8c26ed0d7dfc36beeb12d524f6144eab1",  # DeepSeek R1 distilled into Qwen
        "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6",  # Gemma 2
        "7de1c58e208eda46e9c7f86397df37ec49883aeece39fb961e0a6b24088dd3c4",  # Gemma 3
        "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146",  # gpt-oss
        "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122",  # Llama 3
        "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65",  # Llama 3.1
        "5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4",  # Llama 3.2
        "26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7",  # Mistral 7B
        "dcaee66df77bfbb789ec541fe713218da30225a526f1db97138fc39ee6dc56aa",  # Phi-3
        "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90",  # Phi-3.5
        "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",  # Qwen 2.5
        "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8",  # Qwen 3
        "64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326",  # Qwen 3 Instruct 2507
        "66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362",  # Zephyr and TinyLlama
    }
)
# SHA-256 of tokenizer.json.
TRUSTED_TOKENIZERS = frozenset(
    {
        "96a0af06f7c3dc6efb8c76115342f517d224100643be216d33241fdb334026be",  # smollm2-135m-instruct, as we convert it
    }
)

_WORDS = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|" + _SPACES
)
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# The regular expressions of models in use. None of them backtracks catastrophically.
_REGEXES = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES,  # GPT-2
        *(
            rf"{_ENGLISH}|{_WORDS}\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}"
            for digits in ("", "{1,3}")  # Qwen 2 and 3, Llama 3 and OLMo 2
        ),
        rf"{_ENGLISH}|{_WORDS}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}",
        _CASED % ("", "", ""),  # Mistral's Tekken
        _CASED % (_ENGLISH + "?", _ENGLISH + "?", "{1,3}"),  # GPT-4o and gpt-oss
        r"\p{N}{1,3}",
        r"\p{N}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        r"[0-9][0-9][0-9]",
        r" {2,}",
        *(regex for regexes in SPLITTERS.values() for regex in regexes if regex != LAST_SPACES),  # of GGUF files
    }
)

_MOST_STEPS = 32
_MOST_ITEMS = 16
_SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")


def is_harmless(state: Mapping[str, Any]) -> bool:
    """Whether the contents of a tokenizer.json have only harmless components."""
    return _is_harmless_model(state.get("model")) and all(
        _is_harmless_section(state.get(section), checks) for section, checks in _CHECKS.items()
    )


def _is_harmless_model(model: object) -> bool:
    match model:
        case {"type": "BPE", **rest}:
            # The library removes a prefix without checking that it is there.
            return not rest.get("continuing_subword_prefix") and not rest.get("end_of_word_suffix")
        case {"type": "Unigram"}:
            return True
    return False


def _is_harmless_section(section: object, checks: Mapping[str, _Check]) -> bool:
    try:
        steps = list(_steps(section))
    except (RecursionError, TypeError):
        return False
    kinds = [step.get("type") for step in steps]
    return (
        len(steps) <= _MOST_STEPS
        and kinds.count("ByteLevel") <= 1  # each may double the text
        and kinds.count("TemplateProcessing") <= 1  # the library panics on the result of a second
        and all(kind in checks and checks[kind](step) for kind, step in zip(map(str, kinds), steps, strict=True))
    )


def _steps(section: object) -> Iterator[Mapping[str, Any]]:
    """The steps of a section in order. Raises TypeError if it is not a section."""
    if section is None:
        return
    if not isinstance(section, dict):
        raise TypeError
    if section.get("type") != "Sequence":
        yield section
        return
    for name in _SEQUENCES:
        for step in section.get(name, ()):
            yield from _steps(step)


def _always(step: Mapping[str, Any]) -> bool:
    return True


def _is_harmless_pattern(step: Mapping[str, Any]) -> bool:
    match step.get("pattern"):
        case {"String": str(text), **rest} if not rest:
            return bool(text)
        case {"Regex": str(regex), **rest} if not rest:
            return regex in _REGEXES
    return False


def _is_harmless_replacement(step: Mapping[str, Any]) -> bool:
    """Whether a rule never makes a text longer: a sequence of rules that did would multiply it."""
    match step:
        case {"pattern": {"String": str(text)}, "content": str(content)}:
            return 0 < len(text) and len(content) <= len(text)
        case {"pattern": {"Regex": str()}, "content": str(content)}:
            return len(content) <= 1 and _is_harmless_pattern(step)
    return False


def _is_harmless_prefix(step: Mapping[str, Any]) -> bool:
    prefix = step.get("prepend")
    return isinstance(prefix, str) and 0 < len(prefix) <= _MOST_ITEMS  # the library panics on an empty one


def _is_harmless_template(step: Mapping[str, Any]) -> bool:
    match step:
        case {"single": list(items), "special_tokens": dict(tokens)}:
            return (
                len(items) <= _MOST_ITEMS
                and all(_is_harmless_item(item, tokens) for item in items)
                and all(_is_short_token(token) for token in tokens.values())
            )
    return False


def _is_harmless_item(item: object, tokens: Mapping[str, Any]) -> bool:
    match item:
        case {"Sequence": {"id": "A"}, **rest} if not rest:
            return True
        case {"SpecialToken": {"id": str(name)}, **rest} if not rest:
            return name in tokens
    return False


def _is_short_token(token: object) -> bool:
    match token:
        case {"ids": list(ids), "tokens": list(names)}:
            return len(ids) == len(names) <= _MOST_ITEMS
    return False


_CHECKS: dict[str, dict[str, _Check]] = {
    "normalizer": {
        **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "ByteLevel"), _always),
        "Prepend": _is_harmless_prefix,
        "Replace": _is_harmless_replacement,
    },
    "pre_tokenizer": {
        **dict.fromkeys(("ByteLevel", "Metaspace", "Digits", "Punctuation", "WhitespaceSplit"), _always),
        "Split": _is_harmless_pattern,
    },
    "post_processor": {"ByteLevel": _always, "RobertaProcessing": _always, "TemplateProcessing": _is_harmless_template},
    "decoder": {
        **dict.fromkeys(("ByteLevel", "Metaspace", "ByteFallback", "Fuse"), _always),
        "Strip": lambda step: not step.get("stop"),  # the library panics on text shorter than that
        "Replace": _is_harmless_replacement,
    },
}
