from __future__ import annotations

from docs.make_man_pages import DIRECTORY, pages


def test_the_man_pages_are_those_of_the_options() -> None:
    """Where this fails, `python docs/make_man_pages.py` writes them again."""
    assert {file.name: file.read_text(encoding="ascii") for file in DIRECTORY.iterdir()} == pages()
