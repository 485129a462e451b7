"""Mutators of the tokenizer, its settings and the chat template: bombs, contradictions and garbage."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import wraps
from random import Random
from typing import Any

from tests.corpus.model_dir import Expected, ModelDir, Mutator
from tests.tiny import TEMPLATE

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
REGEXES = ["(a+)+$", "(a|a)*$", "(.*)*x", "(?=(a+))\\1+$", "(((((a{1000}){1000}){1000}){1000}){1000})", "[",
           "(?<x", "\\p{Nope}",
           "(" * 5000, "", "(x*)*(y*)*(z*)*$", "^(([a-z])+.)+[A-Z]([a-z])+$", "\\G(?!.*.*.*.*.*.*.*.*$)"]  # fmt: skip


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
_TEXT = {"Sequence": {"id": "A", "type_id": 0}}
_TOKEN_X = {"SpecialToken": {"id": "x", "type_id": 0}}


def _of_tokenizer(change: Callable[[Random, Any], Expected | None]) -> Mutator:
    """The mutator that changes what tokenizer.json holds."""

    @wraps(change)
    def mutate(rng: Random, model: ModelDir) -> Expected | None:
        state = model.json(FILE)
        expected = change(rng, state)
        model.put(FILE, state)
        return expected

    return mutate


@_of_tokenizer
def vocabulary(rng: Random, state: Any) -> Expected:
    """A vocabulary that is impossible, or larger than the model's, which only has no use for the rest."""
    section = state["model"]
    vocab: dict[str, Any] = section["vocab"]
    piece, other = rng.sample(sorted(vocab), 2)
    kind = rng.randrange(6)
    larger = kind in (2, 4)
    match kind:
        case 0:
            section["vocab"] = rng.choice([None, [], "x", 7, [["a", 0.0]], [1], {"a": {}}])
        case 1:
            vocab[piece] = rng.choice([-1, 2**32, 2**64, 1.5, "7", None, [], True])
        case 2:
            vocab[piece] = rng.choice([320, 5_000, 2**24, 2**31 - 1, 2**32 - 1])
        case 3:
            vocab[piece] = vocab[other]
        case 4:
            vocab |= {f"more-{index}": 320 + index for index in range(rng.choice([1, 1000]))}
        case 5:
            del section["vocab"]
    return "any" if larger else "reject"


@_of_tokenizer
def remapped(rng: Random, state: Any) -> Expected:
    """Two pieces swap their ids: another tokenizer, and we cannot know."""
    vocab = state["model"]["vocab"]
    one, other = rng.sample(sorted(vocab), 2)
    vocab[one], vocab[other] = vocab[other], vocab[one]
    return "any"


@_of_tokenizer
def merges(rng: Random, state: Any) -> Expected:
    odd = [None, "x", 7, [7], [["a"]], [["a", "b", "c"]], ["a"], ["a b c"], [["nope", "nope"]], [None], {}]
    state["model"]["merges"] = rng.choice(odd)
    return "any"


@_of_tokenizer
def added_tokens(rng: Random, state: Any) -> None:
    token = rng.choice(state["added_tokens"])
    match rng.randrange(4):
        case 0:
            token["id"] = rng.choice([5, 319, 320, 10**9, 2**32, -1, 1.5, "1", None])
        case 1:
            token["content"] = rng.choice([None, 7, [], {}, "<|im_start|>x"])
        case 2:
            state["added_tokens"] = rng.choice(["x", 7, {}, [7], [None], [{}], [[]]])
        case 3:
            del token[rng.choice(["id", "content"])]


@_of_tokenizer
def switched_on(rng: Random, state: Any) -> Expected:
    """Settings of training, which inference ignores."""
    side = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    match rng.randrange(3):
        case 0:
            state["model"]["dropout"] = rng.choice([0.9, 1.0, 0.0])
        case 1:
            state["padding"] = {"strategy": {"Fixed": rng.choice([10**9, 7])}, **side}
        case 2:
            state["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    return "accept"


def normalizer(rng: Random, model: ModelDir) -> Expected:
    """Normalizers that hang, abort, fill the memory or do not exist."""
    garbage = base64.b64encode(rng.randbytes(rng.choice([0, 3, 4, 8, 64, 4096]))).decode()
    sized = base64.b64encode(
        rng.choice([2**31 - 4, 2**32 - 4, 1024]).to_bytes(4, "little") + rng.randbytes(2048)
    ).decode()
    double = [_replace("aa", String="a")] * 28
    components: list[Any] = [
        {"type": "Precompiled", "precompiled_charsmap": garbage},
        {"type": "Precompiled", "precompiled_charsmap": sized},
        {"type": "Precompiled", "precompiled_charsmap": "not base64!"}, {"type": "Sequence", "normalizers": double},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": double}]},
        {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}, _replace("", Regex=rng.choice(REGEXES)),
        _replace("x", String=""), _replace("b" * 1_000_000, String="a"),
        {"type": "Prepend", "prepend": "x" * 1_000_000}, {"type": "Prepend", "prepend": ""}, {"type": "Nope"},
        {"type": 7}, {}, [], "NFC", _nested("normalizers", 300),
    ]  # fmt: skip
    model.put(FILE, model.json(FILE) | {"normalizer": rng.choice(components)})
    return "any"


def pre_tokenizer(rng: Random, model: ModelDir) -> Expected:
    components: list[Any] = [
        {"type": "Split", "pattern": {"Regex": rng.choice(REGEXES)}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": rng.choice(REGEXES)}, "behavior": "Removed", "invert": True},
        {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        {"type": "Sequence", "pretokenizers": [_BYTE_LEVEL] * 30},
        {"type": "Metaspace", "replacement": "xy", "prepend_scheme": "always", "split": True},
        {"type": "Metaspace", "replacement": "", "prepend_scheme": "always", "split": True},
        {"type": "Digits", "individual_digits": "x"}, {"type": "CharDelimiterSplit", "delimiter": "xy"},
        {"type": "FixedLength", "length": 0}, {"type": "UnicodeScripts"}, {"type": "ByteLevel"}, {"type": "Nope"},
        _nested("pretokenizers", 300),
    ]  # fmt: skip
    model.put(FILE, model.json(FILE) | {"pre_tokenizer": rng.choice(components)})
    return "any"


def post_processor(rng: Random, model: ModelDir) -> Expected:
    """Additions around a text: ids of no token, a million ids, or the text many times."""
    token = {"id": "x", "ids": [rng.choice([304, 319, 320, 10**6, 2**32 - 1])], "tokens": ["x"]}
    many = {"id": "x", "ids": [1] * 1_000_000, "tokens": ["x"] * 1_000_000}
    components: list[Any] = [
        _template([_TOKEN_X, _TEXT], {"x": token}),
        _template([_TOKEN_X, _TEXT], {"x": many}),
        _template([_TEXT] * 100_000, {}),
        _template([{"SpecialToken": {"id": "y", "type_id": 0}}], {}),
        _template([{"Sequence": {"id": "B", "type_id": 0}}], {}),
        _template([], {}),
        {"type": "Sequence", "processors": [_template([_TEXT] * 3, {})] * 2},
        {"type": "RobertaProcessing", "sep": ["x", 10**6], "cls": ["y", 10**6], "trim_offsets": True,
         "add_prefix_space": True},
        {"type": "BertProcessing", "sep": ["x", 2**32 - 1], "cls": ["y", 0]},
        {"type": "TemplateProcessing"},
        {"type": "Nope"},
        _nested("processors", 300),
    ]  # fmt: skip
    model.put(FILE, model.json(FILE) | {"post_processor": rng.choice(components)})
    return "any"


def decoder(rng: Random, model: ModelDir) -> Expected:
    components: list[Any] = [
        None, {}, [], "ByteLevel", {"type": "Nope"}, {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "CTC"}, {"type": "Sequence", "decoders": []},
        {"type": "Sequence", "decoders": [_replace(" ", Regex=rng.choice(REGEXES))]},
        {"type": "Strip", "content": " ", "start": 10**18, "stop": 10**18}, {"type": "Metaspace", "replacement": "xy"},
        _nested("decoders", 300),
    ]  # fmt: skip
    model.put(FILE, model.json(FILE) | {"decoder": rng.choice(components)})
    return "any"


@_of_tokenizer
def model_part(rng: Random, state: Any) -> Expected:
    section = state["model"]
    changes: list[dict[str, Any]] = [
        {"continuing_subword_prefix": "x" * 1000}, {"continuing_subword_prefix": "é"}, {"end_of_word_suffix": "</w>"},
        {"unk_token": "nope"}, {"unk_token": 7},
        {"type": "WordPiece", "unk_token": "x", "max_input_chars_per_word": 10**18, "continuing_subword_prefix": ""},
        {"type": "WordLevel", "unk_token": "nope"}, {"type": "Unigram", "unk_id": 10**9, "vocab": [["a", 0.0]]},
        {"type": "Unigram", "unk_id": None, "vocab": [["a", -1e999]]}, {"type": "Unigram", "unk_id": 0, "vocab": []},
        {"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0], ["a", 1e308], ["aa", 1e308]]}, {"type": "Nope"},
        {"type": None}, {"fuse_unk": "x"}, {"byte_fallback": True}, {"ignore_merges": True}, {"dropout": 7.5},
        {"dropout": -1}, {"cache_capacity": 2**63},
    ]  # fmt: skip
    state["model"] = section | rng.choice(changes)
    return "any"


@_of_tokenizer
def long_pieces(rng: Random, state: Any) -> None:
    """A Unigram vocabulary with a piece that makes the library's tree deep."""
    pieces = [[piece, -1.0] for piece in sorted(state["model"]["vocab"])]
    rng.choice(pieces)[0] = rng.choice(["a", "Ġ", "é"]) * rng.choice([257, 10_000, 1_000_000])
    state["model"] = {"type": "Unigram", "unk_id": 0, "vocab": pieces}


@_of_tokenizer
def sections(rng: Random, state: Any) -> Expected:
    """A section that is missing, of another type, or a copy of another one."""
    name = rng.choice(sorted(state))
    if rng.random() < 0.3:
        del state[name]
    else:
        values = [None, [], {}, "x", 7, True, {"type": "Sequence"}, state[rng.choice(sorted(state))]]
        state[name] = rng.choice(values)
    return "any"


def settings(rng: Random, model: ModelDir) -> Expected:
    """Values of any type in tokenizer_config.json, of which only a new token changes what the model computes."""
    values = [7, True, [], ["x"], {}, {"content": 7}, {"content": "<|im_end|>"}, {"content": []}, None, "\ud800",
              "nope", "x" * 1_000_000, "\x1b[2J", 1e308, {"__type": "AddedToken"}]  # fmt: skip
    fields = ["eos_token", "bos_token", "pad_token", "unk_token", "add_bos_token", "model_max_length",
              "tokenizer_class",
              "added_tokens_decoder", "messages_token", "clean_up_tokenization_spaces", "auto_map"]  # fmt: skip
    field, value = rng.choice(fields), rng.choice(values)
    model.change(SETTINGS, **{field: value})
    return "any" if field.endswith("_token") and isinstance(value, str) else "either"


def templates_of_wrong_types(rng: Random, model: ModelDir) -> None:
    """Chat templates that are not text, or not Jinja."""
    named = [[{"name": ["x"], "template": "y"}], [{"name": "default", "template": 7}], [{"name": {}}], [7], [None], []]
    model.change(SETTINGS, chat_template=rng.choice([7, True, {}, 1.5, "{% for %}", "{{", *named]))


def templates(rng: Random, model: ModelDir) -> Expected:
    """Templates that never end, fill the memory, leave the sandbox, or fail."""
    attacks = [
        "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3, "{{ 'a' * 10**9 }}",
        "{% set x = messages[0].content * 10**9 %}{{ x }}", "{{ 'a'.center(10**9) }}",
        "{{ messages[0].content.ljust(10**10) }}", "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}", "{{ [0] * 10**9 }}", "{{ range(10**9) | list }}", "{{ 2 ** 10 ** 9 }}",
        "{{ (10 ** 4000) ** 4000 }}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}", "{{ lipsum.__globals__['os'].popen('touch /tmp/owned').read() }}",
        "{{ joiner.__init__.__globals__.os.system('id') }}",
        "{{ messages.__class__ }}{{ ().__class__.__bases__ }}{{ 1/0 }}", "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('id') }}", "{% extends '/etc/passwd' %}",
        "{{ raise_exception('\x1b[2J\x07no\nno\nno\nno\nno\nno\nno') }}", "{{ messages[0].nope.nope }}",
        "{{ messages[7] }}", "{{ undefined_function() }}", "{{ strftime_now('%Y' * 10**8) }}", "{{ strftime_now(7) }}",
        "{{ messages | tojson(indent=10**9) }}", "{{ '(' * 100000 }}{{ " + "(" * 100_000, "{{ " + "-" * 50_000 + "1 }}",
        "{% if " + "not " * 50_000 + "1 %}{% endif %}", "{{ 'x' | indent(10**9) }}",
        "{{ 'x' | wordwrap(1) | urlize }}{% for i in range(10) recursive %}{{ loop([i]) }}{% endfor %}",
        "{{ messages | map(attribute='x.' * 100000) | list }}",
    ]  # fmt: skip
    model.change(SETTINGS, chat_template=rng.choice(attacks))
    return "any"


def templates_alike(rng: Random, model: ModelDir) -> Expected:
    """Other templates that render the same conversation."""
    alike = [
        "{# a comment #}" + TEMPLATE,
        TEMPLATE + "{# another #}",
        "{% set x = 'y' * 1000 %}" + TEMPLATE,
        [{"name": "tool_use", "template": "{{ 1/0 }}"}, {"name": "default", "template": TEMPLATE}],
    ]
    model.change(SETTINGS, chat_template=rng.choice(alike))
    return "accept"


def _nested(members: str, depth: int) -> dict[str, Any]:
    sequence: dict[str, Any] = {"type": "Sequence", members: []}
    for _ in range(depth):
        sequence = {"type": "Sequence", members: [sequence]}
    return sequence


def _replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _template(single: list[Any], special: dict[str, Any]) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}


MUTATORS = [
    vocabulary, remapped, merges, added_tokens, switched_on, normalizer, pre_tokenizer, post_processor,
    decoder, model_part, long_pieces,
    sections, settings, templates_of_wrong_types, templates, templates_alike,
]  # fmt: skip
IN_CHATS = frozenset({"settings", "templates_of_wrong_types", "templates", "templates_alike"})
