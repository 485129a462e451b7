"""Completion for bash, which splits words at colons; names of models have them, such as `ollama:qwen3:0.6b`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable


def complete(answer: Callable[[], object]) -> None:
    """Runs `answer`, which writes completions to stdout and exits. For bash, cuts off what precedes the last colon."""
    before = _join_words() if os.environ["_GPTCLI_COMPLETE"] == "complete_bash" else ""
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written):
            answer()
    finally:
        lines = written.getvalue().splitlines(keepends=True)
        sys.stdout.write("".join(line.removeprefix(before) for line in lines))
        sys.stdout.flush()


def _join_words() -> str:
    """Joins words around colons in bash's variables; returns the last word up to its last colon.

    Bash does not tell whether blanks stood beside a colon.
    """
    words, current = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", "0"))
    joined: list[str] = []
    for word in [*words[:current], *(words[current : current + 1] or [""])]:
        if joined and (word.startswith(":") or joined[-1].endswith(":")):
            joined[-1] += word
        else:
            joined.append(word)
    if len(joined) <= current:
        os.environ |= {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(len(joined) - 1)}
    name, colon, _ = joined[-1].rpartition(":")
    return name + colon
