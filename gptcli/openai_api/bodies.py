"""Reads request bodies of OpenAI's API. Parameters that are unknown or unsupported are refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from gptcli.errors import GptcliError, UsageError
from gptcli.settings import CONSTRAINT_FIELDS, SAMPLING_FIELDS, SAMPLING_NUMBERS, ReasoningEffort
from gptcli.text.chat_templates.chat_template import Switches
from gptcli.text.messages import BadMessage, Message
from gptcli.text.messages import messages_of as checked_messages
from gptcli.tools.definitions import AUTO, NONE, Definition, checked_choice, checked_tools

CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MOST_CHOICES, MOST_PROMPTS, MOST_SOUGHT = 128, 2048, 1000  # MOST_SOUGHT: texts or words that each step looks for
# Parameters with the same name in `Request`; some are OpenAI's, the others extensions.
SAME_NAMES = {*SAMPLING_FIELDS, *CONSTRAINT_FIELDS, "stop", "ignore_eos", "overflow"}
# Parameters that change nothing in the text.
WITHOUT_EFFECT = {
    "model",
    "user",
    "metadata",
    "store",
    "safety_identifier",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "client_metadata",  # of OpenAI's Codex
    *("cache_prompt", "id_slot"),  # of llama.cpp's server
    *("priority", "request_id"),  # of vLLM's
}
# Values that ask for nothing.
NOTHING = {
    "suffix": "", "best_of": 1, "modalities": ["text"], "verbosity": "medium", "include": [],
    "background": False, "truncation": "disabled", "context_management": [], "speed": "standard",
    "functions": [], "function_call": "none", "top_logprobs": 0, "min_tokens": 0, "stop_token_ids": [],
    "skip_special_tokens": True, "add_generation_prompt": True, "continue_final_message": False,
    "use_beam_search": False, "include_stop_str_in_output": False, "timings_per_token": False,
    "stream_options": {"include_obfuscation": False},
}  # fmt: skip


class BadParameter(UsageError):
    """A parameter of a request is unknown, unsupported or wrong."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message, setting=name)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request. prompts: several texts, ids, or one conversation; each has `choices` answers.

    options: by the names of `Request`. logprobs: alternatives of each token; None without log-probabilities. switches:
    the chat template's. tools, tool_choice, parallel_tool_calls: of a conversation. answer_ids: the beginning of its
    answer, as ids or text. echo: whether a text has its prompt before it. include_usage: whether a stream ends with the
    counts. schema_parameter: where a schema is from, for errors.
    """

    url: str
    prompts: Sequence[str | Sequence[int] | Sequence[Message]]
    choices: int = 1
    logprobs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    switches: Switches = field(default_factory=Switches)
    tools: Sequence[Definition] = ()
    tool_choice: object = AUTO
    parallel_tool_calls: bool = True
    answer_ids: Sequence[int] | str = ()
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    schema_parameter: str = "json_schema"
    model: str | None = None

    def named(self, error: GptcliError) -> GptcliError:
        """An error of these options, whose setting has the name that the request gives it."""
        if isinstance(error, UsageError) and error.setting == "json_schema":
            error.setting = self.schema_parameter
        return error


def asked_of_body(url: str, body: Mapping[str, Any]) -> Asked:
    """Reads a body for `CHAT` or `TEXT`. Raises BadParameter."""
    given = {name: value for name, value in asking(body).items() if name not in WITHOUT_EFFECT}
    asked: dict[str, Any] = {"stream": check_flag("stream", given.pop("stream", False))}
    asked["include_usage"] = _include_usage(given.pop("stream_options", None), asked["stream"])
    asked["choices"] = check_count("n", given.pop("n", 1))
    options = {name: given.pop(name) for name in SAME_NAMES & given.keys()}
    prompts = given.pop("messages" if url == CHAT else "prompt", None)
    if url == CHAT:
        options |= _limit(given, ("max_completion_tokens", "max_tokens"), 1)
        if form := response_format(given.pop("response_format", {"type": "text"})):
            options |= form
            asked["schema_parameter"] = "response_format"
        asked["logprobs"] = _chat_logprobs(given)
        asked["switches"] = _switches(given)
        asked |= tools_of(given)
        asked["answer_ids"] = check_ids("answer_ids", given.pop("answer_ids", []))
    else:
        asked["echo"] = check_flag("echo", given.pop("echo", False))
        options |= _limit(given, ("max_tokens",), 0 if asked["echo"] else 1)
        asked["logprobs"] = given.pop("logprobs", None)
        check_alternatives("logprobs", asked["logprobs"], 20)
    known_only(given, set())
    asked["prompts"] = [messages_of(prompts)] if url == CHAT else prompts_of("prompt", prompts)
    if len(asked["prompts"]) * asked["choices"] > MOST_PROMPTS:
        raise BadParameter("n", f"there must be at most {MOST_PROMPTS} texts: n for each prompt")
    check_kinds(options)
    return Asked(url=url, options=options, model=model_of(body), **asked)


@dataclass(frozen=True)
class AskedVectors:
    """A request for `EMBEDDINGS`. inputs: texts or ids. packed: as base64 of fp32 numbers.

    dimensions: how many numbers a text must have; None for as many as the model gives.
    """

    inputs: Sequence[str | Sequence[int]]
    packed: bool
    dimensions: int | None
    model: str | None


def asked_vectors(body: Mapping[str, Any]) -> AskedVectors:
    """Reads a body for `EMBEDDINGS`. Raises BadParameter."""
    given = known_only(body, {"model", "user", "input", "encoding_format", "dimensions"})
    inputs, form = prompts_of("input", given.get("input")), given.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise BadParameter("encoding_format", "encoding_format must be float or base64")
    dimensions = given.get("dimensions")
    if dimensions is not None and type(dimensions) is not int:
        raise BadParameter("dimensions", "dimensions must be a whole number")
    return AskedVectors(inputs, form == "base64", dimensions, model_of(body))


def tools_of(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the tools of a conversation out of the parameters. Raises BadParameter."""
    parallel = check_flag("parallel_tool_calls", given.pop("parallel_tool_calls", True))
    tools, choice = given.pop("tools", None), given.pop("tool_choice", AUTO)
    if tools == [] and choice == AUTO:  # an empty list excludes the command's tools, too
        choice = NONE
    try:
        tools = () if tools in (None, []) else checked_tools(tools)
    except UsageError as error:
        raise BadParameter("tools", error.message) from None
    try:
        # Without tools of its own, a line of a batch may choose one of the command's.
        choice = checked_choice(choice, tools) if tools else choice
        return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel}
    except UsageError as error:
        raise BadParameter("tool_choice", error.message) from None


def _limit(given: dict[str, Any], names: Sequence[str], least: int) -> dict[str, Any]:
    limits = {name: given.pop(name) for name in names if name in given}
    first = next(iter(limits.values()), None)
    for name, limit in limits.items():
        if type(limit) is not int or (limit < least and limit != -1) or limit != first:
            raise BadParameter(name, f"{name} must be one whole number, at least {least}, or -1 for no limit")
    return {"max_tokens": first} if limits else {}


def _include_usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not stream or not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise BadParameter("stream_options", "stream_options is for streams, and has include_usage alone")
    if options.get("include_obfuscation"):
        raise BadParameter("stream_options", "not supported: include_obfuscation")
    return check_flag("include_usage", options.get("include_usage", False))


def _chat_logprobs(given: dict[str, Any]) -> int | None:
    wanted, top = given.pop("logprobs", False), given.pop("top_logprobs", None)
    if type(wanted) is not bool or (top and not wanted):
        raise BadParameter("logprobs", "logprobs must be true or false, and true for top_logprobs")
    check_alternatives("top_logprobs", top, 20)
    return (top or 0) if wanted else None


def _switches(given: dict[str, Any]) -> Switches:
    """The template's switches: OpenAI's `reasoning_effort`, and `chat_template_kwargs`, an extension."""
    asked = given.pop("chat_template_kwargs", {})
    if not isinstance(asked, dict) or asked.keys() - {"enable_thinking", "thinking", "reasoning_effort"}:
        raise BadParameter("chat_template_kwargs", "chat_template_kwargs has enable_thinking and reasoning_effort")
    effort = check_effort(given.pop("reasoning_effort", asked.get("reasoning_effort")))
    thinking = asked.get("enable_thinking", asked.get("thinking"))
    if thinking is not None and type(thinking) is not bool:
        raise BadParameter("chat_template_kwargs", "enable_thinking must be true or false")
    return {"thinking": thinking, "reasoning_effort": effort}


def asking(body: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a body that have an effect: neither null, nor a value of `NOTHING`."""
    return {name: value for name, value in body.items() if value is not None and value != NOTHING.get(name)}


def known_only(body: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """The parameters of a body, as `asking`. Raises BadParameter for an unknown one."""
    given = asking(body)
    for name in sorted(given.keys() - known):
        raise BadParameter(name, f"unknown or unsupported parameter: {name}")
    return given


def missing_or(name: str, value: object, wanted: str) -> BadParameter:
    """The error for a parameter that is missing or not what is wanted."""
    return BadParameter(name, f"{name} is missing: {wanted}" if value is None else f"{name} must be {wanted}")


def model_of(body: Mapping[str, Any]) -> str | None:
    """The model that a body names. Raises BadParameter if it is not a text."""
    model = body.get("model")
    if not isinstance(model, str | None):
        raise BadParameter("model", "model must be a text")
    return model


def check_effort(value: object) -> str | None:
    """Raises BadParameter unless the value is a reasoning effort or None."""
    if value is not None and value not in get_args(ReasoningEffort):
        raise BadParameter("reasoning_effort", "reasoning_effort must be low, medium or high")
    return cast("str | None", value)


def check_flag(name: str, value: object) -> bool:
    """Raises BadParameter unless the value is true or false."""
    if type(value) is not bool:
        raise BadParameter(name, f"{name} must be true or false")
    return value


def check_count(name: str, value: object) -> int:
    """Raises BadParameter unless the value is a number of choices."""
    if type(value) is not int or not 1 <= value <= MOST_CHOICES:
        raise BadParameter(name, f"{name} must be a whole number from 1 to {MOST_CHOICES}")
    return value


def check_alternatives(name: str, value: object, most: int) -> None:
    """Raises BadParameter unless the value is a number of alternatives or None."""
    if value is not None and (type(value) is not int or not 0 <= value <= most):
        raise BadParameter(name, f"{name} must be a whole number from 0 to {most}")


def check_kinds(options: dict[str, Any]) -> None:
    """Brings options into the types that `Request` takes, in place. Raises BadParameter for values of another type."""
    for name in ("stop", "choices"):
        texts = options.get(name, ())
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
            raise BadParameter(name, f"{name} must be a text or several, and none empty")
        if name == "stop":
            check_fewness(name, texts)
        if name in options:
            options[name] = tuple(texts)
    for name in SAMPLING_NUMBERS:
        if type(options.get(name, 0)) not in (int, float):
            raise BadParameter(name, f"{name} must be a number")
    for name in ("ignore_eos", "json_object"):
        check_flag(name, options.get(name, False))
    for name in ("regex", "grammar", "overflow"):
        if not isinstance(options.get(name, ""), str):
            raise BadParameter(name, f"{name} must be a text")
    if not isinstance(options.get("json_schema", {}), dict | str):
        raise BadParameter("json_schema", "json_schema must be an object")
    for name in ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"):
        values = options.get(name, [])
        nested = name == "bad_words_ids"
        if not isinstance(values, list) or not all(isinstance(value, list if nested else int) for value in values):
            raise BadParameter(name, f"{name} must be a list of {'lists of ' if nested else ''}token ids")
        if nested:
            check_fewness(name, values)
    if type(seed := options.get("seed")) is int and -(2**63) <= seed < 0:  # OpenAI's are signed
        options["seed"] = seed % 2**64
    if "logit_bias" in options:
        options["logit_bias"] = _bias(options["logit_bias"])


def _bias(value: object) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in cast("dict[str, float]", value).items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise BadParameter("logit_bias", "logit_bias must be an object of numbers by token id") from None


def check_fewness(name: str, values: Sequence[object]) -> None:
    """Raises BadParameter for more values than each step can search for."""
    if len(values) > MOST_SOUGHT:
        raise BadParameter(name, f"{name} must have at most {MOST_SOUGHT} entries")


def check_ids(name: str, value: object) -> list[int]:
    """Raises BadParameter unless the value is a list of token ids."""
    if not isinstance(value, list) or not all(type(id) is int for id in value):
        raise BadParameter(name, f"{name} must be a list of token ids")
    return value


def prompts_of(name: str, prompt: object) -> Sequence[str | Sequence[int]]:
    """The texts or token ids of a parameter. Raises BadParameter."""
    match prompt:
        case str():
            return [prompt]
        case [int(), *_]:
            return [check_ids(name, prompt)]
        case [_, *_] if len(prompt) > MOST_PROMPTS:
            raise BadParameter(name, f"{name} must have at most {MOST_PROMPTS} texts")
        case [str(), *_] if all(isinstance(text, str) for text in prompt):
            return cast("list[str]", prompt)
        case [list(), *_]:
            return [check_ids(name, ids) for ids in prompt]
    raise missing_or(name, prompt, "a text or token ids, or several of these")


def response_format(asked: object, name: str = "response_format") -> dict[str, Any]:
    """The constraint of a format. name: of the request's parameter. Raises BadParameter."""
    match asked:
        case {"type": "text", **rest} if not rest:
            return {}
        case {"type": "json_object", **rest} if not rest:
            return {"json_object": True}
        case {"type": "json_object", "schema": dict(schema), **rest} if not rest:  # as for llama.cpp's server
            return {"json_schema": schema}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema), **named}, **rest} if not rest:
            if not named.keys() - {"name", "description", "strict"}:
                return {"json_schema": schema}
    raise BadParameter(name, f"{name} must be of type text, json_object or json_schema")


def messages_of(turns: object, name: str = "messages") -> list[Message]:
    """The messages of a conversation. name: the parameter's. Raises BadParameter."""
    if turns is None:
        raise missing_or(name, turns, "a list of messages")
    try:
        return checked_messages(turns)
    except BadMessage as error:
        where = name + error.name.removeprefix("messages")
        raise BadParameter(where, error.message.replace(error.name, where, 1)) from None
