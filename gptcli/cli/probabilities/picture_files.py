"""Collects the passages of a run, and writes them as an HTML page or an SVG picture at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli.probabilities.shaded_tokens import ShadedToken, shaded_groups
from gptcli.errors import UsageError
from gptcli.files import output_file, written_whole

if TYPE_CHECKING:
    from gptcli.cli.probabilities.picture_content import Passage

_ALTERNATIVES = 5  # at each position, unless another number was asked for


class PictureFiles:
    """The files named by `--html` and `--svg`.

    Raises OutputError if they cannot be written, and UsageError if they are the same, or an input.
    """

    def __init__(self, html: Path | None, svg: Path | None, inputs: Sequence[Path]) -> None:
        self._html, self._svg = html, svg
        self._passages: list[Passage] = []
        for file in (html, svg):
            if file is not None:
                output_file(file, inputs)
        if html is not None and html == svg:
            raise UsageError(f"--html and --svg exclude each other in one file: {html}")

    @property
    def wanted(self) -> bool:
        """Whether there is a file to write."""
        return self._html is not None or self._svg is not None

    @property
    def alternatives(self) -> int:
        """The number of likely tokens to show at each position."""
        return _ALTERNATIVES if self.wanted else 0

    def add(
        self, title: str, tokens: Iterable[ShadedToken], figures: Sequence[tuple[str, str]] = (), lead: str = ""
    ) -> None:
        """Adds a passage. lead: unshaded text before its tokens."""
        if self.wanted:
            from gptcli.cli.probabilities.picture_content import Passage

            self._passages.append(Passage(title, list(shaded_groups(tokens)), figures, lead))

    def write(self, title: str) -> None:
        """Writes the files. Raises OutputError."""
        if self._html is not None:
            from gptcli.cli.probabilities.html_page import page

            _write(self._html, page(title, self._passages))
        if self._svg is not None:
            from gptcli.cli.probabilities.svg_picture import picture

            _write(self._svg, picture(title, self._passages))


def _write(file: Path, picture: str) -> None:
    with written_whole(file) as draft:
        draft.write_text(picture, encoding="utf-8", newline="\n")
