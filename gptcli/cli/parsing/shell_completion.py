"""Completion by a shell: what Typer does not do for bash, which splits words at colons, and for zsh's quotes.

Names of models have colons, such as `ollama:qwen3:0.6b`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable


def words_before() -> list[str]:
    """The words of the line that a shell completes, without the program's name and the last word."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return re.split(r"\s", line)[1:-1]


def complete(answer: Callable[[], object]) -> None:
    """Runs `answer`, which writes completions to stdout and exits. For bash, cuts off what precedes the last colon."""
    shell = os.environ["_GPTCLI_COMPLETE"]
    before = _join_words() if shell == "complete_bash" else ""
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written):
            answer()
    finally:
        completions = written.getvalue()
        if shell == "complete_zsh":
            completions = completions.replace("''", r"'\''")  # within quotes, zsh drops two of them
        lines = completions.splitlines(keepends=True)
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
