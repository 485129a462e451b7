"""What a line asks for: OpenAI's request bodies, or a prompt with options by their long names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptcli.openai_api.bodies import (
    CHAT,
    EMBEDDINGS,
    MOST_CHOICES,
    SAME_NAMES,
    TEXT,
    Asked,
    AskedVectors,
    BadParameter,
    asked_of_body,
    asked_vectors,
    check_alternatives,
    check_count,
    check_kinds,
    messages_of,
    tools_of,
)
from gptcli.text.messages import Message

_PLAIN = SAME_NAMES | {"max_tokens"}
_FIELD = re.compile(r"\{([^{}]+)\}")
_NAME = re.compile(r"[\w .-]+")  # other text in braces is text, JSON for example


@dataclass(frozen=True)
class PlainSettings:
    """Settings of lines without a body. chat: a prompt is a user's turn. samples, logprobs: of lines that name none."""

    chat: bool = False
    samples: int = 1
    logprobs: int | None = None

    def asked(self, prompt: str) -> Asked:
        """What a line with this prompt asks for."""
        if self.chat:
            return Asked(url=CHAT, prompts=[[Message("user", prompt)]], choices=self.samples, logprobs=self.logprobs)
        return Asked(url=TEXT, prompts=[prompt], choices=self.samples, logprobs=self.logprobs)


def filled(template: str, fields: Mapping[str, Any]) -> str:
    """A template with each `{field}` replaced by the line's text or JSON.

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


def asked_of(fields: Mapping[str, Any], plain: PlainSettings) -> Asked | AskedVectors:
    """What a line's object asks for. Raises BadParameter."""
    if not {"url", "body", "method"} & fields.keys():
        return _plain(fields, plain)
    for name in fields:
        if name not in ("custom_id", "method", "url", "body"):
            raise BadParameter(name, f"unknown field: {name}")
    if not isinstance(fields.get("custom_id"), str):
        raise BadParameter("custom_id", "custom_id must be a text")
    if fields.get("method", "POST") != "POST":
        raise BadParameter("method", "method must be POST")
    body = fields.get("body")
    if not isinstance(body, dict):
        raise BadParameter("body", "body must be an object")
    implied = CHAT if "messages" in body else EMBEDDINGS if "input" in body else TEXT
    url, known = fields.get("url", implied), (CHAT, TEXT, EMBEDDINGS)  # Mistral's and Together's batches have none
    url = url if url in known else f"/v1{url}"  # Azure's have no version
    if url not in known:
        raise BadParameter("url", f"not supported: url must be {CHAT}, {TEXT} or {EMBEDDINGS}")
    if url == EMBEDDINGS:
        return asked_vectors(body)
    asked = asked_of_body(url, body)
    for name in ("stream", "echo"):
        if getattr(asked, name):
            raise BadParameter(name, f"not supported in a batch: {name}")
    return asked


def _plain(fields: Mapping[str, Any], plain: PlainSettings) -> Asked:
    options = {name.replace("-", "_"): value for name, value in fields.items() if value is not None}
    options.pop("custom_id", None)
    prompt, turns = options.pop("prompt", None), options.pop("messages", None)
    if (prompt is None) == (turns is None):
        raise BadParameter("prompt", "a line has either a prompt or messages")
    if "choice" in options:
        options["choices"] = options.pop("choice")
    choices = check_count("samples", options.pop("samples", plain.samples))
    logprobs = options.pop("logprobs", plain.logprobs)
    check_alternatives("logprobs", logprobs, MOST_CHOICES)
    tools = {} if turns is None else tools_of(options)
    for name in sorted(options.keys() - _PLAIN):
        raise BadParameter(name, f"unknown option: {name}")
    check_kinds(options)
    if turns is not None:
        prompts = [messages_of(turns)]
        return Asked(url=CHAT, prompts=prompts, choices=choices, logprobs=logprobs, options=options, **tools)
    if not isinstance(prompt, str):
        raise BadParameter("prompt", "prompt must be a text")
    return replace(plain.asked(prompt), choices=choices, logprobs=logprobs, options=options)
