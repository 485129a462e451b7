"""The options of `generate` and `chat` that constrain a text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.test_layers import loaded_by

SCHEMA = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'
TEXTS = [b'{"n": 1}', b'{"n": 2}']


def test_a_schema_is_taken_as_text_or_from_a_file(generate: Cli, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA)
    for given in (SCHEMA, tmp_path / "schema.json"):
        done = generate("In", "--json-schema", given)
        assert (done.code, done.err) == (0, "") and done.out in TEXTS


@pytest.mark.parametrize("grammar", ['start: "a" | "bc"', 'root ::= "a" | "bc"'])
def test_a_grammar_comes_from_a_file(generate: Cli, tmp_path: Path, grammar: str) -> None:
    (tmp_path / "grammar").write_text(grammar)
    assert generate("In", "--grammar", tmp_path / "grammar").out in (b"a", b"bc")


def test_every_line_and_every_sample_has_the_form(generate: Cli) -> None:
    done = generate("--lines", "{} is", "--choice", "b", "--choice", "cd", "--samples", "2", stdin=b"One\nTwo\n")
    records = done.records
    assert [record["line"] for record in records] == [1, 1, 2, 2]
    assert {record["text"] for record in records} <= {"b", "cd"}
    assert {record["finish_reason"] for record in records} == {"stop"}


def test_a_chat_answers_in_the_form_in_a_pipe_and_by_lines(cli: Cli, tiny_model: Path) -> None:
    options = ("-m", tiny_model, "--regex", "[0-9]{3}")
    assert cli("chat", *options, "How many?", stdin=b"").out.isdigit()
    records = cli("chat", *options, "--lines", stdin=b"One\nTwo\n").records
    assert all(len(record["text"]) == 3 and record["text"].isdigit() for record in records)


def test_the_options_exclude_each_other(generate: Cli) -> None:
    generate("In", "--json-object", "--regex", "a").fails(2, "--json-object and --regex exclude each other")


def test_the_unsupported_is_refused_before_weights_are_read(generate: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptcli.language_model.LanguageModel.load", lambda *given: pytest.fail("weights were read"))
    done = generate("In", "--json-schema", '{"items": {"not": {}}}')
    assert (done.code, done.out, done.err) == (2, b"", "gptcli: error: json-schema: #/items: not supported: not\n")


def test_a_file_that_is_missing_is_an_input_error(generate: Cli) -> None:
    assert generate("In", "--json-schema", "missing.json").code == 4


def test_a_text_that_was_cut_is_noted_in_a_pipe_too(generate: Cli) -> None:
    given = ("In", "-n", "3", "--json-schema", '{"type": "string", "minLength": 99}')
    done = generate(*given)
    assert done.code == 0 and "cut before the text was what it had to be" in done.err
    assert generate(*given, "--json").json["finish_reason"] == "length"


def test_a_text_that_a_stop_text_cut_is_noted(generate: Cli) -> None:
    done = generate("In", "--choice", "a small town", "--stop", "town")
    assert (done.code, done.out) == (0, b"a small ")
    assert "cut at a stop text, so it may not be what it had to be" in done.err


def test_forced_tokens_are_counted(generate: Cli) -> None:
    stats = json.loads(generate("In", "--choice", "a small town", "--stats=json").err)
    assert 0 < stats["forced_tokens"] <= stats["completion_tokens"]


def test_explain_says_how_many_tokens_the_constraint_left(generate: Cli) -> None:
    [step] = generate("In", "--regex", "[0-9]", "--explain", "--json").json["explain"]
    constraint = step["filters"][0]
    assert (constraint["name"], constraint["kept"]) == ("constraint", 10)
    assert constraint["removed"] > 200


def test_nothing_is_imported_for_texts_without_constraint(tiny_model: Path) -> None:
    code = f"import gptcli; list(gptcli.load({str(tiny_model)!r}).generate('a', max_tokens=2))"
    assert loaded_by(code, "llguidance", "gptcli.generation.constraints.grammar") == set()


FORMS: dict[str, tuple[tuple[str, ...], str]] = {
    "schema": (("--json-schema", '{"enum": ["a", {"b": [1, 2]}]}'), r'"a"|\{"b": \[1, 2\]\}'),
    "regex": (("--regex", "(In|a) [0-9]{2}(, small)?"), "(In|a) [0-9]{2}(, small)?"),
    "choice": (("--choice", "a small town", "--choice", "12"), "a small town|12"),
    "grammar": (("--grammar", "grammar.lark"), "a+b"),
}
BESIDE: dict[str, tuple[str, ...]] = {
    "stop": ("--stop", "zzz"),
    "logprobs": ("--logprobs", "2"),
    "explain": ("--explain",),
    "samples": ("--samples", "3"),
    "speculate": ("--speculate", "4"),
    "draft model": ("--draft-model", "MODEL"),
    "lines": ("--lines",),
    "chat": ("--chat",),
    "drawn": ("-t", "1.5"),
    "penalties": ("--repeat-penalty", "1.3", "--presence-penalty", "1"),
    "no repeats": ("--no-repeat-ngram-size", "3"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beside", BESIDE)
def test_forms_hold_beside_any_option(generate: Cli, tiny_model: Path, tmp_path: Path, form: str, beside: str) -> None:
    (tmp_path / "grammar.lark").write_text('start: "a"+ "b"')
    named = {"grammar.lark": str(tmp_path / "grammar.lark"), "MODEL": str(tiny_model)}
    options, pattern = FORMS[form]
    prompt, stdin = ("In a {}", b"One\nTwo\n") if beside == "lines" else ("In a", b"")
    given = [named.get(each, each) for each in options + BESIDE[beside]]
    done = generate(prompt, "--json", "-n", "60", *given, stdin=stdin)
    assert done.code == 0, done.err
    records = done.records
    assert len(records) == {"lines": 2, "samples": 3}.get(beside, 1)
    for record in records:
        ended = record["finish_reason"] == "stop"
        assert re.fullmatch(pattern, record["text"]) if ended else form == "grammar"
