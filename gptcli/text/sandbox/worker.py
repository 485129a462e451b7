"""The sandboxed process that `client.py` starts: opens an untrusted template or tokenizer, then answers requests.

It limits itself before it reads anything, writes no files, and sends only replies.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any

from gptcli.errors import GptcliError

Answer = Callable[[dict[str, Any]], Any]

_RENDERED_LIMIT = 1 << 20  # characters of a rendered chat, plus four times those of the messages
_OPEN_FILES = 32


def _open_template(source: bytes) -> Answer:
    from gptcli.text.jinja_template import JinjaTemplate

    template = JinjaTemplate(json.loads(source))

    def render(variables: dict[str, Any]) -> str:
        text = template.render(variables)
        if len(text) > _RENDERED_LIMIT + 4 * len(str(variables["messages"])):
            raise GptcliError(f"it makes {len(text)} characters of a conversation")
        return text

    return render


def _open_tokenizer(data: bytes) -> Answer:
    from gptcli.text.hf_tokenizers import decode_batch, encode
    from gptcli.text.tokenizer_json import parse

    library = parse(data)

    def answer(request: dict[str, Any]) -> dict[str, Any] | list[str]:
        if "sequences" in request:
            return decode_batch(library, request["sequences"])
        found = encode(library, request["text"], request["add_special"])
        return {"ids": found.ids, "offsets": found.offsets, "special_tokens_mask": found.special_tokens_mask}

    return answer


_OPENERS: dict[str, Callable[[bytes], Answer]] = {"template": _open_template, "tokenizer": _open_tokenizer}


def main(content: str, memory: str) -> None:
    """Serves until stdin ends.

    A message is its microseconds of CPU time in 8 bytes, its length in 8 bytes, and its content: first the data to
    open, then requests as JSON objects. A reply is its length in 8 bytes and {"value": ...} or {"error": reason}.
    SIGPROF ends the process if a message takes more time.
    """
    if content == "template":  # imported before time is measured
        import gptcli.text.jinja_template
    else:
        import gptcli.text.hf_tokenizers  # noqa: F401 - as above
    _limit(int(memory))
    _send(b'{"value": "ready"}')
    answer: Answer | None = None
    while (message := _receive()) is not None:
        seconds, data = message
        _allow(seconds)
        try:
            if answer is None:
                answer = _OPENERS[content](data)
                reply = b'{"value": "open"}'
            else:
                reply = json.dumps({"value": answer(json.loads(data))}).encode()
        except GptcliError as error:
            reply = json.dumps({"error": error.message[:1000]}).encode()
        except MemoryError:
            reply = b'{"error": "it takes too much memory"}'
        _send(reply)


def _limit(memory: int) -> None:
    """Limits memory, in bytes, and open files, and forbids writing files, as far as the system supports it."""
    try:
        import resource
    except ImportError:  # Windows: the client watches
        return
    limits = {"RLIMIT_AS": memory, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": _OPEN_FILES}
    for name, value in limits.items():
        number = getattr(resource, name, None)
        if number is None:
            continue
        _, most = resource.getrlimit(number)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError):  # macOS has RLIMIT_AS but refuses to set it: the client watches
            continue


def _allow(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _receive() -> tuple[float, bytes] | None:
    head = sys.stdin.buffer.read(16)
    if len(head) < 16:
        return None
    microseconds, size = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
    return microseconds / 1e6, sys.stdin.buffer.read(size)


def _send(reply: bytes) -> None:
    sys.stdout.buffer.write(len(reply).to_bytes(8, "little") + reply)
    sys.stdout.buffer.flush()
