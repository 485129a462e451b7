from __future__ import annotations

import json
import math
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gptcli import LanguageModel
from tests.cli.conftest import CLOSED, GPTCLI, ROOT, Cli
from tests.tiny import CONFIG, make_model, make_weights


@pytest.fixture
def score(cli: Cli, tiny_model: Path) -> Cli:
    return partial(cli, "score", "-m", tiny_model, "--dtype", "fp32")


def test_a_text_is_a_line_of_figures_and_where_it_is_from(score: Cli, tiny: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "a text.txt"
    file.write_text("In a small town")
    result = score(file, "-", stdin=b"12 small bells")
    wanted = [tiny.score("In a small town"), tiny.score("12 small bells")]
    assert (result.code, result.err) == (0, "")
    for row, expected, source in zip(result.rows, wanted, [str(file), "-"], strict=True):
        perplexity, bits, nll, tokens, name = row
        assert float(perplexity) == pytest.approx(expected.perplexity, abs=1e-3)
        assert float(bits) == pytest.approx(expected.bits_per_byte, abs=1e-3)
        assert float(nll) == pytest.approx(expected.nll, abs=1e-3)
        assert (int(tokens), name) == (len(expected.ids), source)


def test_json_is_the_contracts_object(score: Cli, tiny: LanguageModel) -> None:
    record = score("--json", stdin=b"In a small town\n").json
    expected = tiny.score("In a small town\n")
    assert list(record) == ["model", "file", "tokens", "nll", "perplexity", "bits_per_byte"]
    assert [token["id"] for token in record["tokens"]] == list(expected.ids)
    assert "".join(token["token"] for token in record["tokens"]) == "In a small town\n"
    assert record["tokens"][0]["logprob"] is None
    assert [t["logprob"] for t in record["tokens"][1:]] == pytest.approx(expected.logprobs[1:], abs=1e-5)
    assert record["perplexity"] == pytest.approx(math.exp(record["nll"] / (len(expected.ids) - 1)))
    assert record["bits_per_byte"] == pytest.approx(record["nll"] / math.log(2) / 16)
    assert all("top" not in token for token in record["tokens"])


def test_json_has_the_likeliest_tokens_where_they_are_asked_for(score: Cli) -> None:
    tokens = score("--json", "--top", "2", stdin=b"In a small town").json["tokens"]
    assert tokens[0]["top"] == []
    for token in tokens[1:]:
        first, second = token["top"]
        assert first["logprob"] >= second["logprob"]
        assert list(first) == ["id", "token", "bytes", "logprob"]


def test_a_text_of_one_token_has_figures_that_are_null(score: Cli) -> None:
    record = score("--json", stdin=b"x").json
    assert (record["nll"], record["perplexity"], record["bits_per_byte"]) == (0, None, None)


def test_bos_is_the_first_token_and_the_null(cli: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", adds_bos=True)
    tokens = cli("score", "-m", model, "--json", stdin=b"x").json["tokens"]
    assert [(token["token"], token["logprob"] is None) for token in tokens] == [("<|im_start|>", True), ("x", False)]


def test_tokens_in_a_pipe_are_lines_that_sort_and_cut_understand(score: Cli, tiny: LanguageModel) -> None:
    rows = score("--top", "1", stdin="In\ta ©\n".encode()).rows
    expected = tiny.score("In\ta ©\n", top=1)
    assert [int(row[1]) for row in rows] == list(expected.ids)
    assert rows[0][0] == "nan"
    assert [float(row[0]) for row in rows[1:]] == pytest.approx(expected.logprobs[1:], abs=1e-4)
    assert {len(row) for row in rows[1:]} == {5}
    assert "⇥" in "".join(row[2] for row in rows) and "⏎" in "".join(row[2] for row in rows)


def test_lines_are_scored_one_by_one(score: Cli, tiny: LanguageModel) -> None:
    rows = score("--lines", stdin=b"In a small town\n\n 12 bells \tx\r\nlast").rows
    assert [row[1:] for row in rows] == [["In a small town"], [""], [" 12 bells ", "x"], ["last"]]
    assert rows[1][0] == "nan"
    assert float(rows[0][0]) == pytest.approx(tiny.score("In a small town").perplexity, abs=1e-3)
    assert float(rows[3][0]) == pytest.approx(tiny.score("last").perplexity, abs=1e-3)


def test_lines_as_json_have_their_text(score: Cli) -> None:
    lines = [json.loads(line) for line in score("--lines", "--json", stdin=b"In a\n\nsmall town\n").out.splitlines()]
    assert [line["text"] for line in lines] == ["In a", "", "small town"]
    assert (lines[1]["tokens"], lines[1]["perplexity"]) == ([], None)


def test_a_line_is_scored_before_the_next_one_comes(tiny_model: Path) -> None:
    with subprocess.Popen(
        [*GPTCLI, "score", "--lines", "-m", str(tiny_model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdin.write(b"In a small town\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\tIn a small town\n")
        process.stdin.close()
        assert process.stdout.read() == b""


def test_choices_are_probabilities_the_likeliest_first(score: Cli, tiny: LanguageModel) -> None:
    rows = score("--choices", " town, bells", "--choices", '" 1, 2"', "--prompt", "In a small", stdin=b"").rows
    expected = tiny.choose("In a small", [" town", " bells", " 1, 2"])
    assert [row[1] for row in rows] == [choice.text for choice in expected]
    assert [float(row[0]) for row in rows] == pytest.approx([c.probability for c in expected], abs=1e-4)


def test_choices_continue_what_is_piped_and_the_prompt(score: Cli) -> None:
    record = score("--choices", "a,b", "--prompt", "So: ", "--json", stdin=b"A text.\n").json
    assert record["prompt"] == "A text.\n\nSo: "
    assert [choice["choice"] for choice in record["choices"]] in (["a", "b"], ["b", "a"])
    for choice in record["choices"]:
        assert choice["logprob"] == pytest.approx(sum(token["logprob"] for token in choice["tokens"]))
    assert sum(choice["probability"] for choice in record["choices"]) == pytest.approx(1)


def test_each_line_is_put_into_the_prompt_and_gets_its_choice(score: Cli, tiny: LanguageModel) -> None:
    given = ("--choices", "good,bad", "--prompt", "Text: {}\nIt is ", "--lines")
    for row in score(*given, stdin=b"In a town\nbells, bells").rows:
        best = tiny.choose(f"Text: {row[2]}\nIt is ", ["good", "bad"])[0]
        assert row[:2] == [f"{best.probability:.4f}", best.text]


def test_a_line_may_be_the_whole_prompt_and_an_empty_one_has_no_choice(score: Cli) -> None:
    first, second = score("--choices", "a,b", "--lines", stdin=b"In a\n\n").rows
    assert len(first) == 3 and second == ["nan", "", ""]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("--prompt x", "--prompt needs --choices"),
        ("--choices a", "at least two choices"),
        ("--choices a,a --prompt x", "a choice is there twice: a"),
        ("--choices a,,b --prompt x", "a choice must not be empty"),
        ("--choices a,b --lines --prompt x", "--prompt must have {}"),
        ("--choices a,b --prompt x --top 1", "--choices and --top exclude each other"),
        ("--choices a,b --prompt x --html y.html", "--choices and --html or --svg exclude each other"),
        ("--lines --svg y.svg", "--lines and --html or --svg exclude each other"),
        ("--lines --top 1", "--lines with --top needs --json"),
        ('--choices "a,b --prompt x', "a quote that is not closed"),
        ("--choices a\nb --prompt x", "a newline outside of quotes"),
        ("- -", "stdin can be read once"),
        ("--html x --svg x", "--html and --svg exclude each other in one file: x"),
        ("--stride 0", "stride must be at least 1"),
        ("--top -1", "--top must be at least 0"),
        ("", "there is nothing to score"),
    ],
)
def test_senseless_options_are_refused_before_a_model_is_loaded(
    score: Cli, monkeypatch: pytest.MonkeyPatch, arguments: str, error: str
) -> None:
    monkeypatch.setattr(LanguageModel, "open", None)  # would be an internal error
    score(*arguments.split(" ") if arguments else ()).fails(2, error)


def test_a_choice_in_quotes_may_have_commas_and_quotes(score: Cli) -> None:
    assert sorted(row[1] for row in score("--choices", 'a,"b, ""c"""', "--prompt", "x").rows) == ["a", 'b, "c"']


@pytest.mark.parametrize(
    ("stdin", "code", "error"),
    [
        (b"", 2, "nothing to score: -: it is empty"),
        (b"\xff", 4, "not UTF-8: standard input: byte 0"),
        (b"a\0b", 4, "a NUL byte at 1"),
        (CLOSED, 4, "standard input is closed"),
    ],
)
def test_what_is_no_text_cannot_be_scored(score: Cli, stdin: bytes, code: int, error: str) -> None:
    score(stdin=stdin).fails(code, error)


def test_a_missing_file_is_an_input_error(score: Cli, tmp_path: Path) -> None:
    score(tmp_path / "none").fails(4, "No such file or directory")


@pytest.mark.parametrize("end", [b"", b"\n", b"\nz\n"])
def test_a_line_longer_than_the_limit_is_refused(score: Cli, end: bytes) -> None:
    result = score("--lines", "--max-input", "100", stdin=b"x\n" + b"y" * 101 + end)
    assert (result.code, result.rows) == (4, [["nan", "x"]])
    assert "a line of more than 100" in result.err


def test_a_model_that_computes_nan_is_that_exit_code(cli: Cli, tmp_path: Path) -> None:
    weights = make_weights(CONFIG)
    weights["model.norm.weight"][3] = np.nan
    model = make_model(tmp_path / "model", weights=weights)
    for dtype, way_out in [("fp32", "--quantize none if --quantize was given"), ("bf16", "--dtype fp32")]:
        hint = f" in {dtype}\nhint: `gptcli models verify` finds damaged weights; or try {way_out}\n"
        result = cli("score", "-m", model, "--dtype", dtype, stdin=b"In a small town")
        result.fails(7, "NaN or infinity at token ", hint)
