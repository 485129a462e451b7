"""The inside of the process that `isolation` starts: opens one thing that a stranger wrote, then answers about it.

It limits itself before it reads anything, has no files to write and nothing to say but its answers.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any

from gptcli.errors import GptcliError

Answer = Callable[[dict[str, Any]], Any]

_MOST_RENDERED = 1 << 20  # characters of a rendered chat beyond four times what was said
_OPEN_FILES = 32


def _open_template(source: bytes) -> Answer:
    from gptcli.text.jinja_template import Template

    template = Template(json.loads(source))

    def render(variables: dict[str, Any]) -> str:
        text = template.render(variables)
        if len(text) > _MOST_RENDERED + 4 * len(str(variables["messages"])):
            raise GptcliError(f"it makes {len(text)} characters of a conversation")
        return text

    return render


def _open_tokenizer(data: bytes) -> Answer:
    from gptcli.text.tokenizers_library import encode, parse

    inner = parse(data)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        found = encode(inner, request["text"], request["add_special"])
        return {"ids": found.ids, "offsets": found.offsets, "special_tokens_mask": found.special_tokens_mask}

    return answer


_KINDS: dict[str, Callable[[bytes], Answer]] = {"template": _open_template, "tokenizer": _open_tokenizer}


def main(kind: str, memory: str) -> None:
    """Serves until stdin ends.

    A message is its length in 8 bytes and that many more. The first gives what to open, each further one asks, as a
    JSON object; its "seconds" are those of CPU time it may take. Every message is answered with {"value": ...} or
    {"error": reason}; what takes more time ends the process by SIGPROF.
    """
    if kind == "template":  # slow to import, and no part of what is measured
        import gptcli.text.jinja_template
    else:
        import gptcli.text.tokenizers_library  # noqa: F401 - as above
    _limit(int(memory))
    _send(b'{"value": "ready"}')
    answer: Answer | None = None
    while (message := _receive()) is not None:
        seconds, content = message
        _allow(seconds)
        try:
            if answer is None:
                answer = _KINDS[kind](content)
                reply = b'{"value": "open"}'
            else:
                reply = json.dumps({"value": answer(json.loads(content))}).encode()
        except GptcliError as error:
            reply = json.dumps({"error": error.message[:1000]}).encode()
        except MemoryError:
            reply = b'{"error": "it takes too much memory"}'
        _send(reply)


def _limit(memory: int) -> None:
    """At most so many bytes of memory, few files and none that are written, as far as this system knows limits."""
    try:
        import resource
    except ImportError:  # Windows: our parent watches
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
        except (OSError, ValueError):  # macOS has RLIMIT_AS and refuses to set it: our parent watches
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
