"""Refusals of requests, with an HTTP status."""

from __future__ import annotations

from collections.abc import Mapping

from gptcli.errors import GptcliError


class Refusal(GptcliError):
    """A request is refused with an HTTP status. code: OpenAI's name of the reason. headers: of the answer."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}
