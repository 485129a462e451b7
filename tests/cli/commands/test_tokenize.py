"""What `gptcli tokenize` writes, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gptcli import LanguageModel
from gptcli.text.tokenizer import Tokenizer
from tests.cli.conftest import CLOSED, Cli
from tests.cli.terminal.pty_terminal import on_terminal
from tests.test_layers import HEAVY, loaded_by
from tests.text.tokenizer_kinds import KINDS
from tests.tiny import CONTROL

TEXT = "In a small town 😀, naïve\n"


@pytest.fixture
def tokenize(cli: Cli, tiny_model: Path) -> Cli:
    """`gptcli tokenize` with the tiny model."""
    return partial(cli, "tokenize", "-m", tiny_model)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file with a text."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def other_model(path: Path, kind: str) -> Path:
    """A directory with nothing but a tokenizer of some kind."""
    path.mkdir(exist_ok=True)
    KINDS[kind]().save(str(path / "tokenizer.json"))
    return path


def test_in_a_pipe_a_token_is_a_line_with_its_id(tokenize: Cli, tiny: LanguageModel) -> None:
    ids, texts = zip(*tokenize("--text", "In a\n").rows, strict=True)
    assert list(map(int, ids)) == tiny.tokenizer.encode("In a\n") and "".join(texts) == "In␠a⏎"


def test_ids_are_those_of_the_model(tokenize: Cli, tiny: LanguageModel, text: Path) -> None:
    assert tokenize("--ids", text).out.decode().split() == list(map(str, tiny.tokenizer.encode(TEXT)))
    assert tokenize("--ids", stdin=TEXT.encode()).out == tokenize("--ids", "-", stdin=TEXT.encode()).out


def test_counts_of_several_files_have_names_and_a_total(tokenize: Cli, tiny: LanguageModel, text: Path) -> None:
    count = len(tiny.tokenizer.encode(TEXT))
    assert tokenize("--count", text).out == f"{count}\n".encode()
    expected = f"{count}\t{text}\n{count}\tstandard input\n{2 * count}\ttotal\n"
    assert tokenize("--count", text, "-", stdin=TEXT.encode()).out.decode() == expected


def test_an_empty_text_has_no_tokens(tokenize: Cli) -> None:
    assert tokenize("--count", stdin=b"").out == b"0\n"
    assert tokenize("--ids", stdin=b"").out == b"\n"
    assert tokenize(stdin=b"").out == b""
    stats = tokenize("--json", stdin=b"").json["stats"]
    assert (stats["lines"], stats["bytes_per_token"]) == (0, None)


def test_json_is_the_contracts_object(tokenize: Cli, tiny: LanguageModel, text: Path) -> None:
    out = tokenize("--json", text, "-", stdin=b"a\nb").out
    first, second = map(json.loads, out.decode().splitlines())
    assert list(first) == ["file", "tokens", "stats"]
    assert (first["file"], second["file"]) == (str(text), "-")
    data = TEXT.encode()
    for index, token in enumerate(first["tokens"]):
        assert list(token) == ["index", "id", "token", "bytes", "start", "end", "special"]
        assert token["index"] == index
        assert bytes.fromhex(token["bytes"]) == data[token["start"] : token["end"]]
    ids = [token["id"] for token in first["tokens"]]
    assert ids == tiny.tokenizer.encode(TEXT)
    assert first["stats"] == {
        "bytes": len(data),
        "chars": len(TEXT),
        "lines": 1,
        "tokens": len(ids),
        "bytes_per_token": round(len(data) / len(ids), 4),
        "chars_per_token": round(len(TEXT) / len(ids), 4),
        "unique": len(set(ids)),
        "unknown": 0,
    }
    assert second["stats"]["lines"] == 2


def test_tsv_keeps_a_token_on_its_line(tokenize: Cli) -> None:
    header, *rows = tokenize("--tsv", "--text", "a\tb\\\n\r😀").rows
    assert header == ["index", "id", "token", "bytes", "start", "end", "special", "role"]
    assert "".join(row[2] for row in rows) == "a\\tb\\\\\\n\\r\\xf0\\x9f\\x98\\x80"
    assert b"".join(bytes.fromhex(row[3]) for row in rows).decode() == "a\tb\\\n\r😀"


def test_the_table_has_pieces_and_both_kinds_of_places(tokenize: Cli) -> None:
    header, *rows = tokenize("--table", "--text", "é small").out.decode().splitlines()
    assert header.split() == ["index", "id", "token", "piece", "hex", "bytes", "chars", "special", "role"]
    assert rows[0].split()[2:] == ["⟨c3⟩", "Ã", "c3", "0-1", "0-1"]
    assert rows[1].split()[2:] == ["⟨a9⟩", "©", "a9", "1-2", "0-1"]
    assert rows[2].split()[2:] == ["␠small", "Ġsmall", "20", "73", "6d", "61", "6c", "6c", "2-8", "1-7"]


def test_control_tokens_are_text_unless_asked_for(tokenize: Cli) -> None:
    assert tokenize("--ids", "--special", "--text", "<|im_end|>").out == b"2\n"
    assert len(tokenize("--ids", "--text", "<|im_end|>").out.split()) > 1
    (token,) = tokenize("--json", "--special", "--text", "<|im_end|>").json["tokens"]
    assert (token["special"], token["start"], token["end"]) == (True, 0, 10)


def test_what_the_model_adds_stands_at_the_ends_with_no_bytes(cli: Cli, tmp_path: Path) -> None:
    model = other_model(tmp_path / "bert", "wordpiece")
    tokens = cli("tokenize", "-m", model, "--json", "--add-special", "--text", "in a").json["tokens"]
    assert [(token["token"], token["start"], token["end"], token["special"]) for token in tokens] == [
        ("[CLS]", 0, 0, True),
        ("in", 0, 2, False),
        ("a", 3, 4, False),
        ("[SEP]", 4, 4, True),
    ]
    assert cli("tokenize", "-m", model, "--count", "--add-special", "--text", "in a").out == b"4\n"
    assert cli("tokenize", "-m", model, "--count", "--text", "in a").out == b"2\n"


def test_figures_have_the_share_of_the_context(tokenize: Cli, cli: Cli, tmp_path: Path) -> None:
    record = tokenize("--stats", "--json", "--text", "In a small").json
    assert (record["context"], record["context_share"]) == (256, record["stats"]["tokens"] / 256)
    assert record["longest"][0]["token"] == " small"
    assert b"\ncontext\t" in tokenize("--stats", "--text", "In a small").out
    bare = cli("tokenize", "-m", other_model(tmp_path / "bare", "gpt2"), "--stats", "--text", "In a small")
    assert bare.code == 0
    assert b"context" not in bare.out


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_tokenizer_alone_is_enough(cli: Cli, tmp_path: Path, name: str) -> None:
    model = other_model(tmp_path / "bare", "gpt2") / name
    assert cli("tokenize", "-m", model, "--count", "--text", "In").out == b"1\n"


def test_another_file_is_no_tokenizer(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"GGML")
    result = cli("tokenize", "-m", tmp_path / "model.bin", "--text", "In")
    result.fails(4, "not a directory, a GGUF file or a tokenizer.json")


@pytest.mark.parametrize("given", ["{0} {1}", "{0},{1}", "{0}, {1}", "[{0}, {1}]", " [ {0},{1} ]\n", "{0}\n{1}\n"])
def test_ids_become_the_exact_bytes(tokenize: Cli, tiny: LanguageModel, given: str) -> None:
    first, second = tiny.tokenizer.encode("😀")[:2]
    expected = "😀".encode()[: len(tiny.tokenizer.decode([first, second]))]
    written = given.format(first, second)
    assert tokenize("--decode", written).out == expected
    assert tokenize("--decode", *written.split()).out == expected
    assert tokenize("--decode", "-", stdin=written.encode()).out == expected
    assert tokenize("--decode", stdin=written.encode()).out == expected


@pytest.mark.parametrize("id", ["304", "-1", "x", "1.5", "[[1]]", "\u0663", "1" * 5000])
def test_what_is_no_id_is_refused_before_anything_is_written(tokenize: Cli, id: str) -> None:
    tokenize("--decode", "5", "--", id).fails(2, "they are 0 to 303")
    tokenize("--decode", stdin=id.encode()).fails(4, "they are 0 to 303")


@pytest.mark.parametrize(
    ("options", "text", "cut"),
    [
        ("3", b"In a small town", b"In a small"),
        ("1 --from-end", b"In a small town", b" town"),
        ("3", "a😀b".encode(), b"a"),
        ("3 --partial", "a😀b".encode(), "a😀b".encode()[:3]),
        ("3 --from-end", "a😀b".encode(), b"b"),
        ("3 --from-end --partial", "a😀b".encode(), "a😀b".encode()[-3:]),
    ],
)
def test_a_text_is_cut_to_tokens_and_to_whole_characters(tokenize: Cli, options: str, text: bytes, cut: bytes) -> None:
    assert tokenize("--truncate", *options.split(), stdin=text).out == cut


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [[], ["--from-end"]])
def test_a_cut_text_never_has_more_tokens_than_asked(cli: Cli, tmp_path: Path, kind: str, options: list[str]) -> None:
    model = other_model(tmp_path / kind, kind)
    tokenizer = Tokenizer.open(model)
    whole = "In a small Town, naïve ﬁnal 😀 １2 時計 e\u0301x"
    for limit in (1, 2, 5, 12, 20, 28):
        out = cli("tokenize", "-m", model, "--truncate", str(limit), *options, stdin=whole.encode()).out.decode()
        assert whole.endswith(out) if options else whole.startswith(out)
        assert len(tokenizer.encode(out, add_special=False)) <= limit


def test_a_text_that_does_not_come_back_is_named_with_its_byte(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("aé ﬁ".encode())
    unigram = other_model(tmp_path / "unigram", "unigram")
    roundtrip = ("tokenize", "-m", unigram, "--roundtrip", tmp_path / "a.txt")
    cli(*roundtrip).fails(3, f"not the same: {tmp_path / 'a.txt'}: byte 4: ")
    record = cli(*roundtrip, "--json").json
    assert (record["same"], record["first_difference"]) == (False, 4)


def test_a_text_that_comes_back_is_said_to_be_the_same(cli: Cli, tmp_path: Path) -> None:
    result = cli("tokenize", "-m", other_model(tmp_path / "model", "llama2"), "--roundtrip", stdin=TEXT.encode())
    assert result.code == 0
    assert result.out.startswith(f"standard input: the same, {len(TEXT.encode())} bytes, ".encode())


def test_two_tokenizers_are_compared_border_by_border(tokenize: Cli, tmp_path: Path) -> None:
    other = other_model(tmp_path / "other", "llama3")
    record = tokenize("--compare", other, "--json", "--text", "In a 1984 small town").json
    assert list(record) == ["file", "models", "differences", "tokens", "borders"]
    for difference in record["differences"]:
        assert difference["start"] < difference["end"]
        assert difference["ids"][0] != difference["ids"][1]
    count = ("--count", "--text", "In a 1984 small town")
    counts = [int(tokenize(*count).out), int(tokenize("-m", other, *count).out)]
    assert record["tokens"] == counts
    borders = record["borders"]
    assert [borders["both"] + borders["first"], borders["both"] + borders["second"]] == counts


def test_a_tokenizer_cuts_as_it_does_itself(tokenize: Cli, tiny_model: Path) -> None:
    out = tokenize("--compare", tiny_model, "--text", TEXT).out.decode()
    assert "0 in the first alone, 0 in the second" in out
    assert len(out.splitlines()) == 3


def test_the_vocabulary_can_be_searched(tokenize: Cli) -> None:
    [row] = tokenize("--vocab", "^ small$").rows
    assert row[1:] == [" small", "Ġsmall", b" small".hex(), "0"]
    (record,) = tokenize("--id", "2", "--json").records
    data = CONTROL[2].encode().hex()
    assert record == {"id": 2, "token": CONTROL[2], "piece": CONTROL[2], "bytes": data, "special": True}
    assert tokenize("--vocab", "nothing has this").out == b""


CONVERSATION = [
    {"role": "system", "content": "In a town"},
    {"role": "user", "content": " user <|im_end|>"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "small"},
]


@pytest.mark.parametrize("lines", [False, True])
def test_a_conversations_tokens_have_roles(tokenize: Cli, tiny: LanguageModel, tmp_path: Path, lines: bool) -> None:
    file = tmp_path / "chat.json"
    file.write_text("\n".join(map(json.dumps, CONVERSATION)) if lines else json.dumps(CONVERSATION))
    record = tokenize("--chat", "--json", file).json
    tokens = record["tokens"]

    def text(number: int | None) -> str:
        return b"".join(bytes.fromhex(token["bytes"]) for token in tokens if token["message"] == number).decode()

    for number, message in enumerate(CONVERSATION):
        assert text(number) == f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        assert {token["role"] for token in tokens if token["message"] == number} == {message["role"]}
    assert text(None) == "<|im_start|>assistant\n"
    assert tokens[-1]["end"] == record["stats"]["bytes"]
    assert sum(token["special"] for token in tokens) == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON: standard input: line 1"),
        ("3", "not a conversation: standard input"),
        ('[{"role": "user"}]', "not a message: standard input: message 1: it must have a role and a content"),
        ('{"role": "user", "content": "a"}\nb', "not JSON: standard input: line 2"),
        ('[{"role": "user", "content": 3}]', "not a message: standard input: message 1"),
        ("[" * 100_000, "nested too deeply"),
        ("", "not a conversation: standard input: there are no messages"),
        ("[]", "not a conversation: standard input: there are no messages"),
    ],
)
def test_what_is_no_conversation_is_refused(tokenize: Cli, content: str, message: str) -> None:
    tokenize("--chat", stdin=content.encode()).fails(4, message)


def test_text_that_a_template_rewrites_belongs_to_no_message(tokenize: Cli, tmp_path: Path) -> None:
    template = tmp_path / "loud.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] | upper }}{% endfor %}")
    given = json.dumps([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}])
    result = tokenize("--chat", "--chat-template", template, "--json", stdin=given.encode())
    tokens = result.json["tokens"]
    assert "".join(token["token"] for token in tokens) == "HELLOYOU"
    assert {token["role"] for token in tokens} == {None}


BAD_COMBINATIONS = {
    "--ids --count": "--ids and --count exclude each other",
    "--table --decode 1": "--table and --decode exclude each other",
    "--json --ids": "--json has no meaning with --ids",
    "--json --truncate 3": "--json has no meaning with --truncate",
    "--special --decode 1": "--special has no meaning with --decode",
    "--add-special --truncate 3": "--add-special has no meaning with --truncate",
    "--chat --special a": "--special has no meaning with --chat",
    "--chat --text a": "--text has no meaning with --chat",
    "--chat --roundtrip a": "--chat has no meaning with --roundtrip",
    "--chat-template a b": "--chat-template needs --chat",
    "--from-end a": "--from-end needs --truncate",
    "--partial a": "--partial needs --truncate",
    "--text a b": "--text and a FILE exclude each other",
    "--vocab a b": "a FILE has no meaning with --vocab",
    "--vocab (": "not a regular expression: (",
    "--id 304": "no token has the id 304: they are 0 to 303",
    "--id -1": "no token has the id -1",
    "--truncate -1 a": "--truncate must be at least",
    "--truncate 1 a b": "--truncate takes one text",
    "--color red": "--color must be one of auto, always, never, not red",
    "--color always --ids": "--color has no meaning with --ids",
    "- -": "stdin can be read once",
    "": "there is no text",
}


@pytest.mark.parametrize("options", BAD_COMBINATIONS)
def test_options_of_tokenize_that_contradict_are_refused(tokenize: Cli, options: str) -> None:
    tokenize(*options.split()).fails(2, BAD_COMBINATIONS[options])


def test_the_byte_that_is_no_text_is_counted_from_the_beginning(tokenize: Cli) -> None:
    result = tokenize("--count", stdin=b"a town " * 300_000 + "é".encode()[:1] + b"a")
    assert "not UTF-8: standard input: byte 2100000\n" in result.err


def test_nothing_heavy_is_imported(tiny_model: Path) -> None:
    given = ["tokenize", "-m", str(tiny_model), "--text", "In a small town é"]
    code = f"from gptcli.cli.app import run; assert run({given!r}) == 0"
    assert loaded_by(code, *HEAVY, "rich", "jinja2") == set()


def test_a_terminal_shows_borders_and_whitespace_and_obeys_nothing(tiny_model: Path) -> None:
    text = "In a\tsmall\n\x1b[31m\u202e town é"
    shown = on_terminal("tokenize", "-m", tiny_model, "--text", text)
    assert shown.lines[0] == "In·␠a·⇥·sma·ll·⏎"
    assert shown.lines[1].startswith("␛·[·3·1·m·⟨e2⟩·⟨80⟩·⟨ae⟩=<U+202E>·␠town·")
    assert shown.lines[1].endswith("·⟨c3⟩·⟨a9⟩=é")
    assert b"\x1b[31m" not in shown.raw


def test_without_colour_the_same_text_is_there(tiny_model: Path) -> None:
    coloured = on_terminal("tokenize", "-m", tiny_model, "--text", TEXT)
    plain = on_terminal("tokenize", "-m", tiny_model, "--text", TEXT, NO_COLOR="1")
    assert coloured.lines == plain.lines
    assert b"\x1b[" in coloured.raw
    assert b"\x1b" not in plain.raw


def test_neighbouring_tokens_have_different_backgrounds(tiny_model: Path) -> None:
    shown = on_terminal("tokenize", "-m", tiny_model, "--text", "In a small")
    row = shown.screen.buffer[0]
    backgrounds = [row[column].bg for column in (0, 3, 6)]
    assert backgrounds[0] != backgrounds[1] != backgrounds[2] == backgrounds[0]
    assert "default" not in backgrounds


@pytest.mark.parametrize("width", [1, 7])
@pytest.mark.parametrize("view", [[], ["--table"], ["--stats"]])
def test_any_width_will_do(tiny_model: Path, width: int, view: list[str]) -> None:
    shown = on_terminal("tokenize", "-m", tiny_model, *view, "--text", "Clockmaker 😀 時計", width=width, height=50)
    assert "Traceback" not in shown.text
    assert shown.child.exitstatus == 0


def test_a_token_wider_than_the_terminal_goes_on_in_the_next_line(tiny_model: Path) -> None:
    shown = on_terminal("tokenize", "-m", tiny_model, "--text", " clockmaker a", width=6)
    assert shown.lines == ["␠cloc", "kmake", "r·␠a"]


def test_roles_stand_in_the_margin(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(json.dumps(CONVERSATION[:1]))
    wide = on_terminal("tokenize", "-m", tiny_model, "--chat", str(tmp_path / "chat.json"))
    assert wide.lines[0].startswith("    system │ <|im_start|>·")
    assert wide.lines[1].startswith("           │ In·␠a·␠town·<|im_end|>")
    narrow = on_terminal("tokenize", "-m", tiny_model, "--chat", str(tmp_path / "chat.json"), width=20)
    assert narrow.lines[0] == "[system]"


def test_colours_can_be_asked_for_in_a_pipe(tokenize: Cli) -> None:
    assert b"\x1b[" in tokenize("--color", "always", "--text", "In a").out
    assert b"\x1b[" not in tokenize("--text", "In a").out


@pytest.mark.real
def test_the_default_models_ids_are_the_recorded_ones(cli: Cli, real_weights: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GPTCLI_WEIGHTS", str(real_weights))
    assert cli("tokenize", "--ids", "--text", "In a small town").out == b"788 253 1165 3102\n"


def test_closed_stdin_is_no_crash(tokenize: Cli) -> None:
    assert tokenize("--count", stdin=CLOSED).code == 4
    assert tokenize("--count", "--text", "In", stdin=CLOSED).out == b"1\n"
