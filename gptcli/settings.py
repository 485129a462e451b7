"""What a user can set, as frozen dataclasses that check their own ranges. Knows nothing of models."""

from __future__ import annotations

import difflib
import json
import math
import re
import secrets
import shlex
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

from gptcli.errors import UsageError
from gptcli.tools.definitions import AUTO, NONE, Definition, checked_choice, checked_tools, parse_tools

Overflow = Literal["error", "stop", "shift"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Quantize = Literal["auto", "none", "int8", "int4"]
Kv = Literal["auto", "fp32", "fp16", "int8"]
ReasoningEffort = Literal["low", "medium", "high"]

# Below this a softmax over logits / temperature is one-hot in fp32.
GREEDY_BELOW = 1e-5
# fp32's greatest number: a masked logit, -inf, divided by infinity would be NaN.
MAX_TEMPERATURE = 3.4028234663852886e38
MAX_NUMBER = sys.float_info.max  # which even a whole number must not exceed


def random_seed() -> int:
    """A random seed of 53 bits, which every JSON reader keeps exactly."""
    return secrets.randbits(53)


def _wrong(name: str, part: str, message: str) -> UsageError:
    """The error of an option, or of a part of its value."""
    return UsageError(f"{name}{part} must be {message}", setting=name.replace("-", "_"))


def _check(name: str, value: float, low: float, high: float, meaning: str = "", *, part: str = "") -> None:
    if not (isinstance(value, int | float) and low <= value <= min(high, MAX_NUMBER)):
        bounds = f"between {low} and {high}" if math.isfinite(high) else f"at least {low}"
        raise _wrong(name, part, f"{bounds}{meaning}, not {value}")


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise _wrong(name, "", f"above 0 and at most 1, not {value}")


def _check_whole(name: str, value: int, low: int, high: float = math.inf, meaning: str = "", *, part: str = "") -> None:
    _check(name, value, low, high, meaning, part=part)
    if type(value) is not int:
        raise _wrong(name, part, f"a whole number, not {value}")


def _check_ids(name: str, ids: Sequence[int]) -> None:
    for id in ids:
        _check_whole(name, id, 0, part=": an id")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _wrong(name, "", f"one of {', '.join(choices)}, not {value}")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a token is drawn from the model's distribution."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    no_repeat_ngram_size: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf, " (0 is greedy)")
        _check_whole("top-k", self.top_k, 0, math.inf, " (0 is off)")
        _check_share("top-p", self.top_p)
        _check("min-p", self.min_p, 0, 1)
        _check_share("typical-p", self.typical_p)
        _check("repeat-penalty", self.repeat_penalty, 0.01, 100, " (1 is off)")
        _check_whole("repeat-last-n", self.repeat_last_n, -1, math.inf, " (0 is off, -1 the whole context)")
        _check("presence-penalty", self.presence_penalty, -100, 100)
        _check("frequency-penalty", self.frequency_penalty, -100, 100)
        for token, bias in self.logit_bias:
            _check_whole("logit-bias", token, 0, part=" id")
            if bias != -math.inf:
                _check("logit-bias", bias, -1e6, 1e6, " or -inf", part=f" of token {token}")
        _check_ids("suppress-tokens", self.suppress_tokens)
        _check_ids("begin-suppress-tokens", self.begin_suppress_tokens)
        for word in self.bad_words_ids:
            _check_ids("bad-words-ids", word)
            if not word:
                raise UsageError("bad-words-ids: a word must have at least one token", setting="bad_words_ids")
        _check_whole("no-repeat-ngram-size", self.no_repeat_ngram_size, 0, math.inf, " (0 is off)")
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, 2**64 - 1)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def penalizes(self) -> bool:
        """Whether recent tokens are made less likely."""
        return self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def bans(self) -> bool:
        """Whether tokens are banned, always or at times."""
        always = self.suppress_tokens or self.bad_words_ids
        return bool(always or self.begin_suppress_tokens or self.no_repeat_ngram_size)

    def sparing(self, stop_ids: Container[int]) -> Self:
        """The same without those bad words that are a single stop id: as in transformers, a text can always end."""
        kept = tuple(word for word in self.bad_words_ids if len(word) > 1 or word[0] not in stop_ids)
        return self if kept == self.bad_words_ids else replace(self, bad_words_ids=kept)

    def recent(self, history: Sequence[int]) -> Sequence[int]:
        """The last ids of a text, those that penalties apply to."""
        last_n = self.repeat_last_n
        return history[0 if last_n < 0 else max(0, len(history) - last_n) :]

    @property
    def given(self) -> dict[str, Any]:
        """Every field by its name, as `resolve` takes them."""
        return {name: getattr(self, name) for name in SAMPLING_FIELDS}

    def for_samples(self, count: int) -> list[Self]:
        """One config per sample; their seeds count up from this one's, or from a random one."""
        first = random_seed() if self.seed is None else self.seed
        return [replace(self, seed=(first + sample) % 2**64) for sample in range(count)]

    @classmethod
    def resolve(cls, given: Mapping[str, Any], model_defaults: Mapping[str, Any]) -> Self:
        """Takes each field from the user's options, else from the model, else from our defaults.

        given: as `SamplingKeywords`. Raises UsageError for a value out of range, TypeError for an unknown name.
        """
        return cls(**{**model_defaults, **_given(given)})


SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingConfig))
SAMPLING_NUMBERS = tuple(field.name for field in fields(SamplingConfig) if field.type == "float")
ID_LISTS = {"suppress_tokens", "begin_suppress_tokens"}  # the fields that are token ids


class SamplingKeywords(TypedDict, total=False):
    """SamplingConfig's fields as keywords. What is left out or None is the model's default, else SamplingConfig's."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None
    suppress_tokens: tuple[int, ...] | None
    begin_suppress_tokens: tuple[int, ...] | None
    bad_words_ids: tuple[tuple[int, ...], ...] | None
    no_repeat_ngram_size: int | None
    seed: int | None


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given, as SamplingConfig takes them."""
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(bias := given.get("logit_bias"), Mapping):
        given["logit_bias"] = tuple(bias.items())
    for name in ID_LISTS & given.keys():  # a list, perhaps, as transformers takes them
        given[name] = tuple(given[name])
    if "bad_words_ids" in given:
        given["bad_words_ids"] = tuple(map(tuple, given["bad_words_ids"]))
    return given


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """When a generation ends. max_tokens: -1 is until the context is full."""

    max_tokens: int = 256
    strings: tuple[str, ...] = ()
    ignore_eos: bool = False
    overflow: Overflow = "stop"

    def __post_init__(self) -> None:
        _check_whole("max-tokens", self.max_tokens, -1, math.inf, " (-1 is until the context is full)")
        if not all(isinstance(text, str) for text in self.strings):  # in a session's file, say
            raise UsageError("a stop text must be a text")
        if "" in self.strings:
            raise UsageError("a stop text must not be empty")
        _check_choice("overflow", self.overflow, get_args(Overflow))


@dataclass(frozen=True, kw_only=True)
class ConstraintConfig:
    """What a text must be, in exactly one of these forms. docs/structured-output.md says what each can express.

    json_schema: as JSON text, or in the form that `json.loads` makes of it. json_object: any JSON object. regex: for
    the whole text, in the syntax of Rust's regex crate. grammar: in Lark's notation, or in GBNF. choices: one of these.
    """

    json_schema: str | Mapping[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.json_schema, str | None):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema))
        object.__setattr__(self, "choices", tuple(self.choices))
        given = [name for name in CONSTRAINT_FIELDS if getattr(self, name) not in (None, False, ())]
        if len(given) != 1:
            raise UsageError(f"a constraint has one form, not {' and '.join(given) or 'none'}")
        if not all(isinstance(choice, str) and choice for choice in self.choices):
            raise UsageError("a choice must be a text, and not empty")

    @property
    def form(self) -> str:
        """The name of the field that is given."""
        return next(name for name in CONSTRAINT_FIELDS if getattr(self, name) not in (None, False, ()))

    @classmethod
    def resolve(cls, given: Mapping[str, Any]) -> Self | None:
        """The constraint of these fields, those that are neither None nor empty; None if there is none."""
        named = {name: given[name] for name in CONSTRAINT_FIELDS if given.get(name) not in (None, False, (), [])}
        return cls(**named) if named else None


CONSTRAINT_FIELDS = tuple(field.name for field in fields(ConstraintConfig))


class GenerateKeywords(SamplingKeywords, total=False):
    """`SamplingKeywords`, and ConstraintConfig's fields."""

    json_schema: str | Mapping[str, Any] | None
    json_object: bool
    regex: str | None
    grammar: str | None
    choices: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and in which precision a model runs.

    kv: how keys and values are stored. speculate: tokens to draft per step, 0 for none. adapter: directories of
    adapters, each perhaps with `=WEIGHT`.
    """

    device: str = "auto"
    dtype: Dtype = "auto"
    quantize: Quantize = "auto"
    kv: Kv = "auto"
    ctx_size: int | None = None
    threads: int | None = None
    speculate: int = 0
    draft_model: str | None = None
    adapter: tuple[str, ...] = ()

    @property
    def adapters(self) -> list[tuple[str, float]]:
        """The directories of adapters, each with the factor of its updates."""
        return list(map(_with_weight, self.adapter))

    @property
    def cache_kind(self) -> Literal["fp32", "fp16", "int8"]:
        """How keys and values are stored; fp32 is what `dtype="fp32"` promises."""
        if self.kv == "auto":
            return "fp32" if self.dtype == "fp32" else "fp16"
        return self.kv

    def for_draft_model(self) -> Self:
        """The config of a draft model: as fast as possible, since its mistakes are discarded."""
        return type(self)(device=self.device, threads=self.threads)

    def __post_init__(self) -> None:
        _check_whole("speculate", self.speculate, 0, 64, " (0 is off)")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"device must be auto, cpu, cuda or cuda:N, not {self.device}")
        _check_choice("dtype", self.dtype, get_args(Dtype))
        _check_choice("quantize", self.quantize, get_args(Quantize))
        _check_choice("kv", self.kv, get_args(Kv))
        if self.ctx_size is not None:
            _check_whole("ctx-size", self.ctx_size, 1, math.inf)
        if self.threads is not None:
            _check_whole("threads", self.threads, 1, 1024)


def _with_weight(adapter: str) -> tuple[str, float]:
    path, _, weight = adapter.rpartition("=")
    try:
        return (path, float(weight)) if path else (adapter, 1.0)
    except ValueError:
        return adapter, 1.0


@dataclass(frozen=True, init=False)
class ChatSettings:
    """What a user can change in the course of a conversation. Every setting can be read by its name.

    given: the sampling settings that were given; the others are None: the model's default, else SamplingConfig's.
    thinking: whether to think first, for templates with such a switch. reasoning_effort: how much, likewise. tools:
    what the model can call. tool_choice: auto, none, required, or a tool's name.
    """

    given: Mapping[str, Any]
    max_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool
    overflow: Overflow
    thinking: bool | None
    reasoning_effort: ReasoningEffort | None
    json_schema: str | None
    json_object: bool
    regex: str | None
    grammar: str | None
    choices: tuple[str, ...]
    tools: tuple[Definition, ...]
    tool_choice: str

    def __init__(
        self,
        *,
        given: Mapping[str, Any] | None = None,
        max_tokens: int = 1024,
        stop: tuple[str, ...] = (),
        ignore_eos: bool = False,
        overflow: Overflow = "shift",
        thinking: bool | None = None,
        reasoning_effort: ReasoningEffort | None = None,
        json_schema: str | Mapping[str, Any] | None = None,
        json_object: bool = False,
        regex: str | None = None,
        grammar: str | None = None,
        choices: Sequence[str] = (),
        tools: Sequence[Definition] = (),
        tool_choice: str = AUTO,
        **sampling: Unpack[SamplingKeywords],
    ) -> None:
        """Raises UsageError for a value out of range. `sampling` is added to `given`: so `replace` works."""
        tools = checked_tools(tools) if tools else ()
        vars(self).update(
            given=_given({**(given or {}), **sampling}),
            max_tokens=max_tokens,
            stop=stop,
            ignore_eos=ignore_eos,
            overflow=overflow,
            thinking=thinking,
            reasoning_effort=reasoning_effort,
            json_schema=json_schema if isinstance(json_schema, str | None) else json.dumps(json_schema),
            json_object=json_object,
            regex=regex,
            grammar=grammar,
            choices=tuple(choices),
            tools=tools,
            tool_choice=checked_choice(tool_choice, tools),
        )
        if not tools and tool_choice not in (AUTO, NONE):
            raise UsageError(f"tool-choice {tool_choice} needs tools")
        if reasoning_effort is not None:
            _check_choice("reasoning-effort", reasoning_effort, get_args(ReasoningEffort))
        _ = self.sampling({}), self.stopping, self.constraint  # these check the ranges

    def __getattr__(self, name: str) -> Any:
        if name not in SAMPLING_FIELDS:
            raise AttributeError(f"there is no setting {name}")
        return self.given.get(name)

    def sampling(self, model_defaults: Mapping[str, Any]) -> SamplingConfig:
        """How tokens are drawn with a model that has these defaults."""
        return SamplingConfig.resolve(self.given, model_defaults)

    @property
    def stopping(self) -> StopConfig:
        """When a reply ends."""
        return StopConfig(
            max_tokens=self.max_tokens, strings=self.stop, ignore_eos=self.ignore_eos, overflow=self.overflow
        )

    @property
    def constraint(self) -> ConstraintConfig | None:
        """What a reply must be."""
        return ConstraintConfig.resolve(vars(self))

    @property
    def offered(self) -> tuple[Definition, ...]:
        """The tools that the model is told of."""
        return () if self.tool_choice == NONE else self.tools

    @property
    def values(self) -> dict[str, Any]:
        """Every setting by its name."""
        own = {name: value for name, value in vars(self).items() if name != "given"}
        return {name: self.given.get(name) for name in SAMPLING_FIELDS} | own

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Reads settings from JSON, as `record` spells them. Raises UsageError for an unknown name or a bad value."""
        if unknown := set(record) - set(cls().values):
            raise UsageError(f"there is no setting {min(unknown)}")
        values = dict(record)
        if values.get("logit_bias") is not None:
            values["logit_bias"] = tuple((token, bias) for token, bias in values["logit_bias"])
        return cls(**values | {"stop": tuple(values.get("stop", ()))})

    @property
    def record(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON can spell it."""
        defaults = ChatSettings().values
        return {name: value for name, value in self.values.items() if value != defaults[name]}

    def changed(self, name: str, text: str) -> Self:
        """Changes one setting as a user spells it, "default" for its default. Raises UsageError."""
        defaults = ChatSettings().values
        name = name.replace("-", "_")
        if name not in defaults:
            near = [known for known in defaults if known.startswith(name)]
            near = near or difflib.get_close_matches(name, defaults, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(defaults)}"
            raise UsageError(f"there is no setting {name}", hint)
        kinds = {field.name: str(field.type) for config in (SamplingConfig, ChatSettings) for field in fields(config)}
        return replace(self, **{name: defaults[name] if text == "default" else _parsed(name, kinds[name], text)})


def _parsed(name: str, kind: str, text: str) -> Any:
    """A setting's value from its text; `kind` is its annotation. Raises UsageError."""
    try:
        if name == "logit_bias":
            return parse_logit_bias(shlex.split(text))
        if name in ID_LISTS:
            return parse_ids(name, [text])
        if name == "bad_words_ids":
            return parse_words(text.split())
        if name == "tools":
            return parse_tools(text, "tools")
        if name in ("stop", "choices"):
            return tuple(shlex.split(text))
        if kind.startswith("bool"):
            return {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}[text.lower()]
        if kind.startswith("int"):
            return int(text)
        return float(text) if kind.startswith("float") else text
    except (KeyError, ValueError):
        wanted = {"bool": "on or off", "int": "a whole number", "float": "a number"}
        meaning = wanted.get(kind.split(" ")[0], "a text, in quotes where it has blanks")
        raise UsageError(f"{name} must be {meaning}, not {text}") from None


def parse_logit_bias(pairs: Iterable[str]) -> tuple[tuple[int, float], ...]:
    """Parses texts of the form ID=BIAS. Raises UsageError for others."""
    parsed = []
    for pair in pairs:
        id, _, bias = pair.partition("=")
        try:
            parsed.append((int(id), float(bias)))
        except ValueError:
            raise UsageError(f"logit-bias must be ID=BIAS, such as 42=-1.5, not {pair}") from None
    return tuple(parsed)


def parse_ids(name: str, texts: Iterable[str]) -> tuple[int, ...]:
    """Token ids, with commas or blanks between them; `none` is no id. Raises UsageError for anything else."""
    words = [word for text in texts for word in text.replace(",", " ").split()]
    try:
        return () if words == ["none"] else tuple(map(int, words))
    except ValueError:
        raise UsageError(f"{name.replace('_', '-')} must be token ids, such as 5,42, not {' '.join(words)}") from None


def parse_words(texts: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Words of token ids, each in the form of `parse_ids`; a single `none` is no word. Raises UsageError."""
    words = list(texts)
    return () if words == ["none"] else tuple(parse_ids("bad_words_ids", [word]) for word in words)
