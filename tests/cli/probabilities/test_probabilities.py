"""Probabilities of tokens: shades on a terminal, pages and pictures, the table of explanations."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gptcli import LanguageModel
from gptcli.cli.probabilities.html_page import page
from gptcli.cli.probabilities.picture_content import Passage
from gptcli.cli.probabilities.shaded_tokens import STEPS, EmittedTokens, ShadedToken, shaded_groups, step_of
from gptcli.cli.probabilities.svg_picture import picture
from gptcli.generation.events import StepLogprobs, TextDelta, TokenLogprob
from gptcli.settings import RuntimeConfig
from gptcli.text.decoding.tidied_text import TidyStream
from tests.cli.conftest import Cli
from tests.cli.terminal.pty_terminal import on_terminal

HOSTILE = '<script>alert(1)</script> & "quoted" \x1b[31m\x00\u202e ]]> {y} \ufffe'


def shaded(*tokens: tuple[str | bytes, float | None]) -> list[ShadedToken]:
    """Tokens with their probabilities; the hostile text is an alternative of each."""
    other = (TokenLogprob(7, HOSTILE.encode(), -1.5),)
    return [
        ShadedToken(
            id, text if isinstance(text, bytes) else text.encode(), False, p if p is None else math.log(p), other
        )
        for id, (text, p) in enumerate(tokens)
    ]


def passage(*tokens: tuple[str | bytes, float | None], lead: str = "") -> Passage:
    return Passage("", list(shaded_groups(shaded(*tokens))), [("perplexity", "1.00")], lead)


@pytest.mark.parametrize(
    ("probability", "step"), [(0, 0), (0.0999, 0), (0.1, 1), (0.3, 2), (0.5999, 2), (0.6, 3), (0.9, 4), (1, 4)]
)
def test_a_probability_is_on_the_step_that_its_label_says(probability: float, step: int) -> None:
    assert step_of(probability) is STEPS[step]


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_shades_differ_in_lightness_and_their_text_is_readable() -> None:
    lights = [luminance(step.colour) for step in STEPS]
    assert lights == sorted(lights)
    assert all(brighter / darker > 1.5 for darker, brighter in zip(lights, lights[1:], strict=False))
    for step in STEPS:
        bright, dark = sorted([luminance(step.colour), luminance(step.ink)], reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > 4.5  # WCAG AA


def test_tokens_that_share_a_character_are_one_group_as_probable_as_both() -> None:
    first, second = shaded_groups(shaded(("a", 0.5), (b"\xc3", 0.5), (b"\xa9", 0.25)))
    assert (first.text, second.text) == ("a", "é")
    assert second.probability == pytest.approx(0.125)


def delta(data: bytes, *tokens: bytes) -> TextDelta:
    return TextDelta(data, tuple(StepLogprobs(TokenLogprob(9, token, -1.0), ()) for token in tokens))


def test_a_token_is_emitted_once_complete_and_a_stop_text_never(tiny: LanguageModel) -> None:
    emitted = EmittedTokens(tiny.tokenizer)
    assert [t.data for t in emitted.take(delta(b"one t", b"one", b" two"))] == [b"one"]
    assert [t.data for t in emitted.take(delta(b"wo", b" STOP"))] == [b" two"]
    assert emitted.end() == []
    assert emitted.take(delta(b" S", b" more")) == []
    assert [t.data for t in emitted.end()] == [b" S"]


def test_a_tidied_text_has_all_its_tokens_as_they_are(tiny: LanguageModel) -> None:
    emitted, stream = EmittedTokens(tiny.tokenizer), TidyStream()
    tokens = [b"a", b" ", b". b", b" , c ", b"!", b" d ' ", b"s", b" \xc3", b"\xa9"]
    shown = [t.data for token in tokens for t in emitted.take(delta(stream.push(token), token))]
    shown += [t.data for t in emitted.take(delta(stream.flush()))]
    assert (shown, emitted.end()) == (tokens, [])


def test_a_tidied_text_hides_a_stop_text(tiny: LanguageModel) -> None:
    emitted = EmittedTokens(tiny.tokenizer)
    assert [t.data for t in emitted.take(delta(b"a. b", b"a", b" .", b" b !", b" c"))] == [b"a", b" ."]
    assert [t.data for t in emitted.end()] == [b" b"]


class _Page(HTMLParser):
    """A page as a browser reads it: its tags, and its text outside of style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._styling = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._styling = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._styling = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._styling else data


def test_a_page_fetches_nothing_and_runs_nothing() -> None:
    source = page(HOSTILE, [passage((HOSTILE, 0.5), ("x", None), lead=HOSTILE)])
    parsed = _Page(source)
    assert "script" not in parsed.tags
    assert not {"src", "href", "onclick", "onload"} & {name for name, _ in parsed.attributes}
    assert "url(" not in source and "http:" not in source and "https:" not in source and "@import" not in source
    # Title, heading and lead; the token, its name, its bar; the alternatives of two tokens.
    assert parsed.text.count("<script>alert(1)</script>") == 8
    assert not {"\x1b", "\x00", "\u202e"} & set(source)
    assert "prefers-color-scheme: dark" in source
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in parsed.attributes


def test_a_page_shows_each_token_in_its_step_with_its_alternatives() -> None:
    source = page("t", [passage(("The", None), (" cat", 0.05), (" sat\n", 0.95))])
    assert '<span class="t" tabindex="0">The<' in source
    assert ' <span class="t s0 u" tabindex="0">cat<' in source
    assert ' <span class="t s4" tabindex="0">sat<span class="n">⏎</span>\n<' in source
    assert source.count('class="c"') == 3
    assert "<b>␣cat</b> · id 1 · logprob -2.996" in source
    assert '<span class="r d"><span>␣cat</span><span class="b"><i style="width:5.0%"></i></span>' in source


def test_a_picture_is_well_formed_and_shows_hostile_text_as_text() -> None:
    source = picture(HOSTILE, [passage((HOSTILE, 0.5), ("x", None), lead=HOSTILE)])
    root = ElementTree.fromstring(source)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "title", "style", "rect", "text", "g"}
    texts = [element.text or "" for element in root.iter() if element.tag.endswith("}text")]
    assert any("<script>" in text for text in texts)
    assert "url(" not in source and not re.search(r"https?:(?!//www\.w3\.org/2000/svg)", source)
    assert "prefers-color-scheme: dark" in source


def placed(source: str) -> list[tuple[str, float, float]]:
    """The texts of tokens and lead, with their x and y."""
    namespace = {"s": "http://www.w3.org/2000/svg"}
    texts = ElementTree.fromstring(source).findall("s:text[@textLength]", namespace)
    return [(text.text or "", float(text.get("x", "")), float(text.get("y", ""))) for text in texts]


def test_a_pictures_lines_break_between_words_and_at_newlines() -> None:
    words = [(" clockwork" if index % 2 else " and", 0.5) for index in range(30)]
    texts = placed(picture("t", [passage(*words, ("\n", 0.5), ("    ", 0.5), ("end", 0.5))]))
    lines = sorted({y for _, _, y in texts})
    assert len(lines) == 4
    right = max(x + 11 * len(text) for text, x, _ in texts)
    assert right <= 40 + 72 * 11 + 1
    (end,) = [(x, y) for text, x, y in texts if text == "end"]
    assert end[1] == lines[-1] and end[0] == pytest.approx(40 + 4 * 11, abs=1)
    assert all(not text.startswith(" ") for text, _, _ in texts)


def test_a_word_wider_than_the_picture_is_cut_and_drawn_at_once() -> None:
    texts = [text for text, _, _ in placed(picture("t", [passage(("y" * 100, 0.5), lead="x" * 1_000_000)]))]
    assert texts == ["x" * 71 + "…", "y" * 71 + "…"]


def test_score_writes_a_page_and_a_picture_of_all_its_texts(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"In a small town, {name}.")
    html, svg = tmp_path / "p.html", tmp_path / "p.svg"
    result = cli("score", "-m", tiny_model, tmp_path / "one", tmp_path / "two", "--html", html, "--svg", svg)
    assert (result.code, len(result.out.splitlines())) == (0, 2)
    assert html.read_text().count("<section>") == 2
    assert html.read_text().count('class="r"') + html.read_text().count('class="r d"') > 20  # alternatives are there
    ElementTree.fromstring(svg.read_text())


def test_generate_writes_a_page_and_the_same_text_as_without(generate: Cli, tmp_path: Path) -> None:
    file = tmp_path / "p.html"
    plain = generate("In a small", "-n", "8", "--ignore-eos")
    result = generate("In a small", "-n", "8", "--ignore-eos", "--html", file)
    assert (result.code, result.out) == (0, plain.out)
    text = _Page(file.read_text()).text
    assert "In a small" in text
    assert file.read_text().count('<span class="h">') == 8  # a card a token


def test_a_picture_that_cannot_be_written_is_an_early_error(
    generate: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(LanguageModel, "open", None)
    for file in (tmp_path / "none" / "p.svg", tmp_path):
        generate("In a", "--svg", file).fails(8, f"cannot write: {file}")


def test_a_pipe_gets_the_text_alone(generate: Cli) -> None:
    plain = generate("In a small", "-n", "8", "--ignore-eos")
    assert generate("In a small", "-n", "8", "--ignore-eos", "--logprobs", "3", "--explain").out == plain.out


def test_the_table_of_explanations_is_on_stderr(generate: Cli) -> None:
    result = generate("In a small", "-n", "3", "--ignore-eos", "-t", "0.7", "-s", "1", "--explain")
    head, *rows = result.err.splitlines()
    assert head.split() == ["token", "p", "rank", "entropy", "top-k", "top-p", "min-p", "temperature"]
    assert len(rows) == 3
    assert all(len(line) <= 80 for line in [head, *rows])
    assert generate("In a small", "-n", "3", "--ignore-eos", "--explain", "-q").err == ""


def test_json_has_explanations_without_logprobs(generate: Cli) -> None:
    record = generate("In a small", "-n", "3", "--ignore-eos", "--json", "--explain").json
    assert "logprobs" not in record
    assert [step["id"] for step in record["explain"]] == record["ids"]
    for step in record["explain"]:
        assert step["rank"] == 1  # it was greedy
        assert [effect["name"] for effect in step["filters"]] == ["greedy"]
        assert step["filters"][0]["kept"] == 1
        removed = 1 - math.exp(step["logprob"])
        assert step["filters"][0]["removed_probability"] == pytest.approx(removed, abs=1e-5)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file to score."""
    file = tmp_path / "text"
    file.write_text("In a small town\n")
    return file


def test_a_scored_text_is_shaded_on_a_terminal(tiny_model: Path, text: Path) -> None:
    terminal = on_terminal("score", "-m", tiny_model, text, "--top", "2")
    first, figures, legend, *table = terminal.lines
    assert first.replace("·", "") == "In␠a␠small␠town⏎"
    assert figures.startswith("perplexity ")
    assert legend.split() == "probability under 0.1 0.1 to 0.3 0.3 to 0.6 0.6 to 0.9 0.9 and over".split()
    assert len(table) >= 4
    assert re.search(rb"\x1b\[4;38;5;231;48;5;53m", terminal.raw)  # what this random model finds improbable


def test_figures_and_tables_fit_a_narrow_terminal(tiny_model: Path, text: Path) -> None:
    lines = on_terminal("score", "-m", tiny_model, text, "--top", "2", width=32).lines
    labels = ("perplexity ", "bits a byte ", "log-probability ", "tokens ", " 0.9 and over")
    for label in labels:  # each is on a line with its figure
        assert any(re.search(rf"{label}[^ ]*( ·|$)", line) for line in lines), label
    rows = [line for line in lines if re.match(r" +\d+ +[-\d.]+  ", line)]
    tokenizer = LanguageModel.open(str(tiny_model), RuntimeConfig()).tokenizer
    assert len(rows) == len(tokenizer.encode(text.read_text()))
    assert all(row.split()[0] == str(number) for number, row in enumerate(rows, 1))


def test_without_colour_the_shades_are_an_underline_and_borders(tiny_model: Path, text: Path) -> None:
    terminal = on_terminal("score", "-m", tiny_model, text, NO_COLOR="1")
    assert b"\x1b[38" not in terminal.raw and b"\x1b[48" not in terminal.raw
    assert b"\x1b[4m" in terminal.raw
    assert "·" in terminal.lines[0]
    assert terminal.lines[-1] == "underlined: the model gave it a probability under 0.1"


def test_a_generation_is_shaded_as_it_comes_and_the_stop_text_is_not_shown(tiny_model: Path, cli: Cli) -> None:
    given = ["generate", "-m", str(tiny_model), "-t", "0", "-n", "6", "--ignore-eos", "12"]
    assert cli(*given).out.startswith(b"DDDDZ")
    assert cli(*given, "--stop", "DZ").out == b"DDD"
    text, legend, *table = on_terminal(*given, "--logprobs", "1", "--stop", "DZ").lines
    assert text.replace("·", "") == "DDD"
    assert legend.startswith("probability ")
    assert len(table) == 3
