"""What a line asks for: OpenAI's request bodies, or a prompt with options by their long names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from gptcli.errors import UsageError
from gptcli.settings import CONSTRAINT_FIELDS, SAMPLING_FIELDS
from gptcli.text.messages import BadMessage, Message, messages_of
from gptcli.tools.definitions import AUTO, Definition, checked_choice, checked_tools

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MOST_CHOICES = 128
# What has the same name in `Request`.
_SAME = {"temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias"}
_WITHOUT_EFFECT = {"model", "user", "metadata", "store", "safety_identifier"}  # they change nothing in the text
_PLAIN = {*SAMPLING_FIELDS, *CONSTRAINT_FIELDS, "max_tokens", "stop", "ignore_eos", "overflow"}
_FIELD = re.compile(r"\{([^{}]+)\}")
_NAME = re.compile(r"[\w .-]+")  # other text in braces is text, JSON for example


class BadParameter(UsageError):
    """A parameter of a line that is unknown, unsupported or wrong; `name` is its name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Asked:
    """What a line asks for. prompts: several texts, ids, or one conversation; each has `choices` answers.

    options: by the names of `Request`. tools, tool_choice: of a conversation. logprobs: alternatives of each token;
    None without log-probabilities.
    """

    url: str
    prompts: Sequence[str | Sequence[int] | Sequence[Message]]
    choices: int = 1
    logprobs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Definition] = ()
    tool_choice: str = AUTO
    model: str | None = None


@dataclass(frozen=True)
class PlainSettings:
    """What holds for lines without a body. chat: a prompt is a user's turn. samples, logprobs: unless a line says."""

    chat: bool = False
    samples: int = 1
    logprobs: int | None = None

    def asked(self, prompt: str) -> Asked:
        """What a line with this prompt asks for."""
        if self.chat:
            return Asked(CHAT, [[Message("user", prompt)]], self.samples, self.logprobs)
        return Asked(TEXT, [prompt], self.samples, self.logprobs)


def filled(template: str, fields: Mapping[str, Any]) -> str:
    """A template with each `{field}` replaced, by JSON if it is no text.

    Raises BadParameter for a field that the line lacks.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in fields:
            if not _NAME.fullmatch(name):
                return match[0]
            raise BadParameter(name, f"the line has no field {name}")
        given = fields[name]
        return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)

    return _FIELD.sub(value, template)


def asked_of(fields: Mapping[str, Any], plain: PlainSettings) -> Asked:
    """What a line's object asks for. Raises BadParameter."""
    if not {"url", "body", "method"} & fields.keys():
        return _plain(fields, plain)
    for name in fields:
        if name not in ("custom_id", "method", "url", "body"):
            raise BadParameter(name, f"unknown field: {name}")
    if not isinstance(fields.get("custom_id"), str):
        raise BadParameter("custom_id", "custom_id must be a text")
    if fields.get("method") != "POST":
        raise BadParameter("method", "method must be POST")
    url, body = fields.get("url"), fields.get("body")
    if url not in (CHAT, TEXT):
        raise BadParameter("url", f"not supported: url must be {CHAT} or {TEXT}")
    if not isinstance(body, dict):
        raise BadParameter("body", "body must be an object")
    return _body(url, body)


def _plain(fields: Mapping[str, Any], plain: PlainSettings) -> Asked:
    options = {name.replace("-", "_"): value for name, value in fields.items() if value is not None}
    options.pop("custom_id", None)
    prompt, turns = options.pop("prompt", None), options.pop("messages", None)
    if (prompt is None) == (turns is None):
        raise BadParameter("prompt", "a line has either a prompt or messages")
    if "choice" in options:
        options["choices"] = options.pop("choice")
    choices = _count("samples", options.pop("samples", plain.samples))
    logprobs = options.pop("logprobs", plain.logprobs)
    _check_alternatives("logprobs", logprobs, MOST_CHOICES)
    tools = {} if turns is None else _tools(options)
    for name in sorted(options.keys() - _PLAIN):
        raise BadParameter(name, f"unknown option: {name}")
    _check_kinds(options)
    if turns is not None:
        return Asked(CHAT, [_messages(turns)], choices, logprobs, options, **tools)
    if not isinstance(prompt, str):
        raise BadParameter("prompt", "prompt must be a text")
    return replace(plain.asked(prompt), choices=choices, logprobs=logprobs, options=options)


def _body(url: str, body: Mapping[str, Any]) -> Asked:
    given = {name: value for name, value in body.items() if value is not None and name not in _WITHOUT_EFFECT}
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise BadParameter("model", "model must be a text")
    if given.pop("stream", False) is not False:
        raise BadParameter("stream", "not supported in a batch: stream")
    options = {name: given.pop(name) for name in _SAME & given.keys()}
    limits = [given.pop(name) for name in ("max_completion_tokens", "max_tokens") if name in given]
    if limits:
        options["max_tokens"] = limits[0]
        if not all(type(limit) is int and limit >= 1 for limit in limits) or limits[0] != limits[-1]:
            raise BadParameter("max_tokens", "max_tokens must be one whole number, at least 1")
    choices = _count("n", given.pop("n", 1))
    prompts: Sequence[str | Sequence[int] | Sequence[Message]]
    tools = {} if url != CHAT else _tools(given)
    if url == CHAT:
        prompts = [_messages(given.pop("messages", None))]
        options |= _response_format(given.pop("response_format", {"type": "text"}))
        wanted, top = given.pop("logprobs", False), given.pop("top_logprobs", None)
        if type(wanted) is not bool or (top is not None and not wanted):
            raise BadParameter("logprobs", "logprobs must be true or false, and true for top_logprobs")
        _check_alternatives("top_logprobs", top, 20)
        logprobs = (top or 0) if wanted else None
    else:
        prompts = _prompts(given.pop("prompt", None))
        logprobs = given.pop("logprobs", None)
        _check_alternatives("logprobs", logprobs, 20)
        for name, without in (("echo", False), ("suffix", ""), ("best_of", 1)):
            if given.get(name) == without:
                del given[name]
    for name in sorted(given):
        raise BadParameter(name, f"unknown or unsupported parameter: {name}")
    _check_kinds(options)
    return Asked(url, prompts, choices, logprobs, options, **tools, model=model)


def _tools(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the tools of a conversation out of what is given."""
    if given.pop("parallel_tool_calls", True) is not True:
        raise BadParameter("parallel_tool_calls", "not supported: parallel_tool_calls other than true")
    tools, choice = given.pop("tools", None), given.pop("tool_choice", AUTO)
    try:
        tools = () if tools is None else checked_tools(tools)
    except UsageError as error:
        raise BadParameter("tools", error.message) from None
    try:
        return {"tools": tools, "tool_choice": checked_choice(choice, tools)}
    except UsageError as error:
        raise BadParameter("tool_choice", error.message) from None


def _count(name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_CHOICES:
        raise BadParameter(name, f"{name} must be a whole number from 1 to {MOST_CHOICES}")
    return value


def _check_alternatives(name: str, value: object, most: int) -> None:
    if value is not None and (type(value) is not int or not 0 <= value <= most):
        raise BadParameter(name, f"{name} must be a whole number from 0 to {most}")


def _check_kinds(options: dict[str, Any]) -> None:
    """Raises BadParameter for a value of a kind that `Request` does not check itself."""
    for name in ("stop", "choices"):
        texts = options.get(name, ())
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
            raise BadParameter(name, f"{name} must be a text or several, and none empty")
        if name in options:
            options[name] = tuple(texts)
    for name in ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"):
        if type(options.get(name, 0)) not in (int, float):
            raise BadParameter(name, f"{name} must be a number")
    for name in ("ignore_eos", "json_object"):
        if type(options.get(name, False)) is not bool:
            raise BadParameter(name, f"{name} must be true or false")
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
    if "logit_bias" in options:
        options["logit_bias"] = _bias(options["logit_bias"])


def _bias(value: object) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in cast("dict[str, float]", value).items()}
    except (AttributeError, TypeError, ValueError):
        raise BadParameter("logit_bias", "logit_bias must be an object of numbers by token id") from None


def _prompts(prompt: object) -> Sequence[str | Sequence[int]]:
    match prompt:
        case str():
            return [prompt]
        case [str(), *_] if all(isinstance(text, str) for text in prompt):
            return cast("list[str]", prompt)
        case [int(), *_] if all(type(id) is int for id in prompt):
            return [cast("list[int]", prompt)]
    raise BadParameter("prompt", "prompt must be a text, several texts, or token ids")


def _response_format(asked: object) -> dict[str, Any]:
    match asked:
        case {"type": "text", **rest} if not rest:
            return {}
        case {"type": "json_object", **rest} if not rest:
            return {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"json_schema": schema}
    raise BadParameter("response_format", "response_format must be of type text, json_object or json_schema")


def _messages(turns: object) -> list[Message]:
    try:
        return messages_of(turns)
    except BadMessage as error:
        raise BadParameter(error.name, error.message) from None
