"""`gptcli batch`: a line of output for each request, whatever the line, in order, once."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gptcli import LanguageModel
from gptcli.cli.batch import input_lines, output_file
from gptcli.cli.batch.output_file import AnswersFile
from gptcli.files import lock
from tests.cli.batch.kills import kill
from tests.cli.conftest import GPTCLI, ROOT, Cli, Result
from tests.kills import is_torn

pytestmark = pytest.mark.usefixtures("tiny_by_default")
OPTIONS = ("-t", "0", "-n", "4", "--ignore-eos")


def lines(*records: dict[str, Any] | bytes) -> bytes:
    return b"".join(each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in records)


def bodies(result: Result) -> list[dict[str, Any]]:
    return [answer["response"]["body"] for answer in result.records]


def answers(out: Path) -> list[dict[str, Any]]:
    """The answers in a file, without their times."""
    found = [json.loads(line) for line in out.read_bytes().splitlines()]
    for answer in found:
        answer["response"]["body"].pop("created", None)
    return found


def request(id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": id, "method": "POST", "url": url, "body": body}


def chat(**body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    return request("a", "/v1/chat/completions", {"messages": messages, "max_tokens": 3, **body})


def completion(**body: Any) -> dict[str, Any]:
    return request("b", "/v1/completions", {"prompt": "In a small town", "max_tokens": 3, **body})


def vectors(**body: Any) -> dict[str, Any]:
    return request("c", "/v1/embeddings", {"input": "In a small town", **body})


def asked(cli: Cli, *records: dict[str, Any] | bytes, options: tuple[str, ...] = OPTIONS) -> Result:
    return cli("batch", "-", *options, stdin=lines(*records))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of three requests."""
    (file := tmp_path / "in.jsonl").write_bytes(lines(*({"prompt": f"number {number}"} for number in range(3))))
    return file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def batch(cli: Cli, source: Path, out: Path) -> Cli:
    """`gptcli batch` from `source` to `out`."""
    return partial(cli, "batch", source, "-o", out, *OPTIONS)


def test_an_answer_has_openais_format(cli: Cli) -> None:
    result = asked(cli, chat(model="tiny"), completion())
    talk, text = result.records
    assert result.code == 0
    assert talk.keys() == text.keys() == {"id", "custom_id", "response", "error"}
    assert (talk["custom_id"], text["custom_id"], talk["error"]) == ("a", "b", None)
    assert talk["response"].keys() == {"status_code", "request_id", "body"}
    assert talk["response"]["body"]["object"] == "chat.completion"
    assert talk["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert text["response"]["body"]["object"] == "text_completion"
    assert text["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert text["response"]["body"]["usage"]["completion_tokens"] == 3


def test_lines_of_other_services_are_accepted_as_they_are(cli: Cli) -> None:
    talk, text = chat(model="m"), completion()
    of_azure = talk | {"url": "/chat/completions"}
    without = [{name: line[name] for name in ("custom_id", "body")} for line in (talk, text)]  # Mistral, Together
    found = [body["choices"][0] for body in bodies(asked(cli, talk, text, *without, of_azure))]
    assert found == [found[0], found[1], found[0], found[1], found[0]]


def test_a_line_is_answered_as_generate_answers_its_prompt(cli: Cli) -> None:
    result = asked(cli, {"prompt": "one"}, {"prompt": "two", "temperature": 1.5, "seed": 4, "max-tokens": 7})
    one = cli("generate", "one", *OPTIONS, stdin=b"").text
    two = cli("generate", "two", "--ignore-eos", "-t", "1.5", "-s", "4", "-n", "7", stdin=b"").text
    assert [body["choices"][0]["text"] for body in bodies(result)] == [one, two]


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]}, ()),
        ({"prompt": "hi"}, ("--chat", "--system", "S")),
    ],
)
def test_a_conversation_is_answered_as_by_generate(cli: Cli, record: dict[str, Any], options: tuple[str, ...]) -> None:
    [body] = bodies(asked(cli, record, options=(*OPTIONS, *options)))
    alone = cli("generate", "--chat", "hi", "--system", "S", *OPTIONS, stdin=b"").text
    assert body["choices"][0]["message"]["content"] == alone


def test_embeddings_come_in_the_order_of_the_lines_as_python_gives_them(cli: Cli, tiny: LanguageModel) -> None:
    packed = vectors(input=["one", "two"], encoding_format="base64")
    result = asked(cli, {"prompt": "a"}, vectors(model="tiny"), {"prompt": "b"}, packed)
    assert [answer["custom_id"] for answer in result.records] == ["line-1", "c", "line-3", "c"]
    _, first, _, second = bodies(result)
    [one] = first["data"]
    assert (one["object"], one["index"]) == ("embedding", 0)
    assert one["embedding"] == pytest.approx(tiny.embed("In a small town").tolist(), abs=1e-6)
    count = len(tiny.tokenizer.encode("In a small town"))
    assert first["usage"] == {"prompt_tokens": count, "total_tokens": count}
    for text, each in zip(("one", "two"), second["data"], strict=True):
        numbers = struct.unpack(f"<{tiny.embed(text).numel()}f", base64.b64decode(each["embedding"]))
        assert numbers == pytest.approx(tiny.embed(text).tolist(), abs=1e-6)


def test_n_choices_have_seeds_that_count_up(cli: Cli) -> None:
    requests = (completion(seed=seed, temperature=1.5) for seed in (7, 8, 9))
    several, *single = bodies(asked(cli, completion(n=3, seed=7, temperature=1.5), *requests))
    texts = [choice["text"] for choice in several["choices"]]
    assert texts == [each["choices"][0]["text"] for each in single]
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2] and len(set(texts)) > 1


def test_several_prompts_of_a_request_are_choices_in_their_order(cli: Cli) -> None:
    requests = (completion(prompt=["one", "two"], n=2), completion(prompt="one"), completion(prompt="two"))
    both, one, two = bodies(asked(cli, *requests))
    texts = [each["choices"][0]["text"] for each in (one, one, two, two)]
    assert [choice["text"] for choice in both["choices"]] == texts
    assert both["usage"]["prompt_tokens"] == sum(each["usage"]["prompt_tokens"] for each in (one, two))


def test_logprobs_of_a_conversation_name_each_token_and_its_alternatives(cli: Cli) -> None:
    [choice] = bodies(asked(cli, chat(logprobs=True, top_logprobs=2)))[0]["choices"]
    steps = choice["logprobs"]["content"]
    spelled = b"".join(bytes(step["bytes"]) for step in steps)
    assert spelled.decode("utf-8", "replace") == choice["message"]["content"]
    assert all(len(step["top_logprobs"]) == 2 and step["logprob"] <= 0 for step in steps)


def test_logprobs_of_a_completion_have_lists(cli: Cli) -> None:
    [choice] = bodies(asked(cli, completion(logprobs=2)))[0]["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert len(choice["logprobs"]["top_logprobs"]) == len(choice["logprobs"]["text_offset"]) == 3


def test_a_response_format_replaces_the_commands_constraint(cli: Cli) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    of_line = chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    of_line["body"]["max_tokens"] = 40
    result = asked(cli, of_line, {"prompt": "x", "max_tokens": 40}, options=("-t", "0", "--choice", "yes"))
    first, second = bodies(result)
    assert json.loads(first["choices"][0]["message"]["content"]) == {"a": 1}
    assert second["choices"][0]["text"] == "yes"


@pytest.mark.parametrize(
    ("line", "parameter"),
    [
        (chat(tools=[1]), "tools"),
        (chat(max_tokens="9"), "max_tokens"),
        (chat(stream=True), "stream"),
        (chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": 3}}}), "response_format"),
        (chat(messages=[{"role": "user", "content": "x", "name": "y"}]), "messages[0].name"),
        (completion(echo=True), "echo"),
        (completion(prompt={}), "prompt"),
        (completion() | {"url": "/v1/moderations"}, "url"),
        (completion() | {"url": "/v1/embeddings"}, "max_tokens"),
        (vectors(input=[]), "input"),
        (completion() | {"method": "GET"}, "method"),
        (completion() | {"custom_id": 5}, "custom_id"),
        ({"prompt": "x", "logit-bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "suppress-tokens": 5}, "suppress_tokens"),
        ({"prompt": "x", "messages": []}, "prompt"),
        ({"prompt": "x", "tempreature": 1}, "tempreature"),
    ],
)
def test_a_parameter_that_cannot_be_honoured_is_named(cli: Cli, line: dict[str, Any], parameter: str) -> None:
    result = asked(cli, line, {"prompt": "fine"})
    assert [answer["response"]["status_code"] for answer in result.records] == [400, 200] and result.code == 9
    error = bodies(result)[0]["error"]
    assert (error["param"], error["type"]) == (parameter, "invalid_request_error")


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON\n",
        b'{"prompt": "\xff"}\n',
        b"[1]\n",
        b'{"prompt": "a", "prompt": "b"}\n',
        b'{"prompt": "\\ud800"}\n',
        b"[" * 100_000 + b"\n",
        b'{"prompt": "' + b"long" * 500 + b'"}\n',
    ],
)
def test_a_line_that_is_no_request_fails_alone(cli: Cli, line: bytes) -> None:
    result = asked(cli, {"prompt": "a"}, line, b"\n", {"prompt": "b"}, options=(*OPTIONS, "--max-input", "1000"))
    first, failed, last = result.records
    assert failed["response"] is None and failed["error"]["code"] == "invalid_json_line"
    assert (first["custom_id"], failed["custom_id"], last["custom_id"]) == ("line-1", "line-2", "line-4")
    assert last["response"]["status_code"] == 200 and result.code == 9


def test_a_prompt_that_does_not_fit_is_an_error_of_its_line(cli: Cli) -> None:
    failed, fine = asked(cli, {"prompt": "long " * 400}, {"prompt": "a"}).records
    assert failed["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert fine["response"]["status_code"] == 200


def test_a_template_takes_fields_of_json_and_columns_of_csv(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'\xef\xbb\xbfname,First word\r\nAda,"a\nb"\r\nBob\r\n')
    options = ("--prompt", '{First word} {name} {"n": 1}', *OPTIONS)
    of_csv = cli("batch", tmp_path / "in.csv", *options)
    assert "byte-order mark dropped" in of_csv.err
    of_json = asked(cli, {"name": "Ada", "First word": "a\nb"}, options=options)
    alone = cli("generate", 'a\nb Ada {"n": 1}', *OPTIONS, stdin=b"").text
    first, short = of_csv.records
    assert first["response"]["body"]["choices"][0]["text"] == bodies(of_json)[0]["choices"][0]["text"] == alone
    assert "2 has 1 fields" in short["error"]["message"]
    [lacking] = bodies(asked(cli, {"x": 1}, options=("--prompt", "{name}")))
    assert lacking["error"]["param"] == "name"


def test_tabs_separate_the_columns_of_a_tsv_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text('name\tword\nAda\t"a, b"\n')
    [body] = bodies(cli("batch", tmp_path / "in.tsv", "--prompt", "{word} {name}", *OPTIONS))
    [same] = bodies(asked(cli, {"prompt": "a, b Ada"}))
    assert body["choices"] == same["choices"]


@pytest.mark.parametrize(("name", "table"), [("in.csv", "id;word\n1;a\n"), ("in.tsv", "id,word\n1,a\n")])
def test_a_table_with_other_separators_has_a_note(cli: Cli, tmp_path: Path, name: str, table: str) -> None:
    (tmp_path / name).write_text(table)
    result = cli("batch", tmp_path / name, "--prompt", "{word}", *OPTIONS)
    assert result.code == 9 and "note: one column in" in result.err


def test_the_file_goes_on_where_it_ended_and_its_torn_line_is_cut_off(batch: Cli, out: Path) -> None:
    assert batch().code == 0
    whole, expected = out.read_bytes(), answers(out)
    for cut in (0, 5, len(whole) // 2, len(whole) - 1, len(whole)):
        out.write_bytes(whole[:cut])
        torn = is_torn(out) and cut > 0
        result = batch()
        assert result.code == 0 and ("was cut off" in result.err) == torn
        assert answers(out) == expected


@pytest.mark.parametrize(
    "option", ["--dtype=fp32", "--temperature=0.5", "--json-object", "--system=Be brief.", "--chat", "--ctx-size=40"]
)
def test_a_batch_resumed_with_other_options_says_so(batch: Cli, out: Path, option: str) -> None:
    batch()
    first, *_ = out.read_bytes().splitlines(keepends=True)
    for other, noted in ((), False), (("--parallel", "1", "--threads", "1"), False), ((option,), True):
        out.write_bytes(first)
        assert ("another model, or other options" in batch(*other).err) == noted
        assert out.read_bytes().startswith(first) and len(answers(out)) == 3


def test_a_batch_resumed_with_another_model_says_so(batch: Cli, out: Path, tmp_path: Path, tiny_model: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    batch()
    out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])
    assert "another model, or other options" in batch("-m", other).err
    named = [answer["response"]["body"]["model"] for answer in answers(out)]
    assert named == [str(tiny_model), str(other), str(other)]


def test_answered_lines_are_not_parsed(batch: Cli, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch()
    source.write_bytes(source.read_bytes() + lines({"prompt": "one more"}))
    parsed = []
    parse = input_lines.parse_json
    monkeypatch.setattr(input_lines, "parse_json", lambda data, where: parsed.append(where) or parse(data, where))
    assert batch().code == 0
    assert parsed == ["line 4"] and len(answers(out)) == 4


def test_failed_lines_stay_failed_until_they_are_tried_again(batch: Cli, source: Path, out: Path) -> None:
    source.write_bytes(lines({"prompt": "a"}, {"prompt": "long " * 20}, {"prompt": "c"}))
    small = batch("--ctx-size", "64")
    assert small.code == 9 and "1 failed" in small.err and "--retry-failed" in small.err
    before = out.read_bytes()
    assert batch().code == 9 and out.read_bytes() == before
    assert batch("--retry-failed").code == 0
    found = [(answer["custom_id"], answer["response"]["status_code"]) for answer in answers(out)]
    assert found == [("line-1", 200), ("line-2", 200), ("line-3", 200)]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda first: first + lines({"prompt": "B"}), "answers another line 2"),
        (lambda first: first, "the input ends with line 1"),
    ],
)
def test_an_output_of_another_input_is_refused_and_left_alone(
    batch: Cli, source: Path, out: Path, edit: Callable[[bytes], bytes], says: str
) -> None:
    batch()
    before = out.read_bytes()
    source.write_bytes(edit(source.read_bytes().splitlines(keepends=True)[0]))
    batch().fails(8, says)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data[:60] + b"\n" + data.partition(b"\n")[2],
        lambda data: data[:50] + b' "response": [1]}\n' + data.partition(b"\n")[2],
        lambda data: b"my notes\n",
    ],
)
def test_what_is_no_output_is_refused_and_left_alone(batch: Cli, out: Path, edit: Callable[[bytes], bytes]) -> None:
    batch()
    edited = edit(out.read_bytes())
    out.write_bytes(edited)
    batch().fails(8, "not the output of a batch")
    assert out.read_bytes() == edited


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda out: out.write_bytes(b""), lambda out: out.rename(f"{out}.old")]
)
@pytest.mark.parametrize("first", [1, 3])  # amid the answers, and once all are there
def test_an_output_that_is_gone_or_changed_meanwhile_is_an_error(
    batch: Cli, out: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Any], first: int
) -> None:
    write, written = AnswersFile.write, []

    def changed(answers: AnswersFile, number: int, record: bytes) -> None:
        write(answers, number, record)
        written.append(number)
        if len(written) == first:
            change(out)

    monkeypatch.setattr(AnswersFile, "write", changed)
    result = batch()
    assert result.code == 8 and "removed, replaced or changed" in result.err
    assert len(written) == first


def test_an_output_that_was_replaced_before_it_was_locked_is_refused(
    batch: Cli, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(descriptor: int) -> bool:
        out.rename(f"{out}.old")
        out.write_bytes(b"")
        return lock(descriptor)

    monkeypatch.setattr(output_file, "lock", replaced)
    result = batch()
    assert result.code == 8 and out.read_bytes() == b""


def test_columns_of_one_name_are_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"text,,text,\na,b,c,d\n")
    cli("batch", tmp_path / "in.csv", "--prompt", "{text}").fails(4, "several columns are called text")


def test_input_and_output_cannot_be_one_file(cli: Cli, source: Path) -> None:
    before = source.read_bytes()
    cli("batch", source, "-o", source).fails(2)
    assert source.read_bytes() == before


def test_the_first_answer_comes_before_the_second_request_is_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.jsonl")
    command = [*GPTCLI, "batch", str(tmp_path / "in.jsonl"), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        watchdog = threading.Timer(100, process.kill)
        watchdog.start()
        with open(tmp_path / "in.jsonl", "wb", buffering=0) as fifo:
            for number in range(3):
                fifo.write(lines({"prompt": str(number)}))
                assert json.loads(process.stdout.readline())["custom_id"] == f"line-{number + 1}"
        assert process.wait() == 0
        watchdog.cancel()


def test_kills_at_any_moment_lose_no_request_and_answer_none_twice(tmp_path: Path) -> None:
    report = kill(24, random.Random(0), tmp_path)
    assert report.kills == 24 and report.torn > 0 and report.completed > 0
