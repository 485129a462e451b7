"""`gptcli train` from a file to a model: what it makes, how it goes on, and what it refuses."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptcli
from gptcli import LanguageModel
from gptcli.training import checkpoints, loop
from gptcli.training.checkpoints import RunDirectory
from gptcli.training.corpus import HELD_OUT, TRAIN, Corpus
from gptcli.training.loop import Training
from tests.cli.conftest import Cli, Result
from tests.tiny import TEXT, edit, make_model

SMALL = ("--block-size", "16", "--learning-rate", "0.01", "--seed", "3")
NEW = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (file := tmp_path / "data.txt").write_text(TEXT * 4)
    return file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def train(cli: Cli, tiny_model: Path, out: Path) -> Cli:
    """`gptcli train` with the tiny model, a few steps into `out`."""

    def call(data: Path, *options: str | Path) -> Result:
        return cli("train", data, "-m", tiny_model, "-o", out, *SMALL, *options)

    return call


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the encoded data of finished runs."""
    monkeypatch.setattr(checkpoints, "_remove", lambda directory: None)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(next(path for path in out.iterdir() if path.suffix == ".safetensors"))


def log(out: Path, event: str) -> list[dict[str, Any]]:
    events = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [each for each in events if each["event"] == event]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Presses Ctrl-C after a step of the next run, and of no other."""
    run = Training.run

    def stopped(self: Training, _: Any) -> Iterator[Any]:
        return run(self, lambda: self.step >= step)

    monkeypatch.setattr(Training, "run", stopped)


def test_a_new_model_learns_and_opens_here_and_in_transformers(cli: Cli, data: Path, tmp_path: Path, out: Path) -> None:
    (config := tmp_path / "config.json").write_text(json.dumps(NEW))
    done = cli("train", data, "--new", config, "--vocab-size", "300", "-o", out, *SMALL, "--sample", "In a")
    assert (done.code, done.out) == (0, f"{out}\n".encode())
    held_out = [each["held_out_loss"] for each in log(out, "held-out")]
    assert held_out[-1] < held_out[0] - 1
    assert len(log(out, "sample")) == len(held_out) == done.err.count("held-out")
    assert (out / "loss.svg").read_text().startswith("<svg")
    lm = gptcli.load(out, device="cpu", dtype="fp32")
    ids = lm.tokenizer.encode("In a small town")
    theirs = AutoModelForCausalLM.from_pretrained(out)(torch.tensor([ids])).logits[0]
    assert (lm.logits(ids) - theirs).abs().max() < 1e-4
    assert AutoTokenizer.from_pretrained(out)("In a small town").input_ids == ids


def test_the_last_held_out_loss_is_that_of_the_model_on_disk(train: Cli, data: Path, out: Path, kept: None) -> None:
    assert train(data, "--full", "-q").code == 0
    tokens, learned = Corpus(RunDirectory(out).data, HELD_OUT).batch([0])
    labels = tokens.masked_fill(~learned, -100)
    theirs = AutoModelForCausalLM.from_pretrained(out)(tokens, labels=labels).loss.item()
    assert abs(log(out, "held-out")[-1]["held_out_loss"] - theirs) < 1e-5


@pytest.mark.parametrize("options", [("--full",), ("--lora", "4", "--lora-dropout", "0.2")], ids=["full", "adapter"])
def test_a_resumed_run_ends_bit_for_bit_as_an_unbroken_one(
    cli: Cli, data: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    arguments = ("train", data, "-m", tiny_model, *options, *SMALL)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli(*arguments, "-o", whole).code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            cli(*arguments, "-o", parts)
    assert RunDirectory(parts).steps() == [5]
    assert cli("train", "-o", parts, "--resume").code == 0
    ours, theirs = weights(parts), weights(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [[each["loss"] for each in log(out, "step")] for out in (parts, whole)]
    assert losses[0] == losses[1]
    assert sorted(path.name for path in parts.iterdir()) == sorted(path.name for path in whole.iterdir())


Learned = Callable[[Path], tuple[list[tuple[bytes, bytes]], str]]


@pytest.fixture
def learned(train: Cli, tiny: LanguageModel, out: Path, kept: None) -> Learned:
    """Trains: each sequence that the run reads, the part that it learns, and stderr."""

    def call(data: Path) -> tuple[list[tuple[bytes, bytes]], str]:
        done = train(data, "--eval-share", "0", "--max-steps", "1", "--block-size", "128")
        assert done.code == 0, done.err
        corpus, decode = Corpus(RunDirectory(out).data, TRAIN), tiny.tokenizer.decode
        batches = [corpus.batch([index]) for index in range(len(corpus))]
        return [(decode(ids[0].tolist()), decode(ids[mask].tolist())) for ids, mask in batches], done.err

    return call


SAID = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Ok"), ("assistant", "Bye")]
MESSAGES = [{"role": role, "content": content} for role, content in SAID]


def test_only_answers_and_the_ends_of_their_turns_are_learned(learned: Learned, tmp_path: Path) -> None:
    rows = ({"messages": MESSAGES}, {"prompt": "One, two,", "completion": " three"})
    (data := tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seen, _ = learned(data)
    assert [mask for _, mask in seen] == [b"Hello.<|im_end|>Bye<|im_end|>", b" three<|im_end|>"]
    assert seen[0][0].endswith(b"Bye<|im_end|>\n")


def test_of_a_prompt_of_messages_nothing_is_learned(learned: Learned, tmp_path: Path) -> None:
    (data := tmp_path / "data.jsonl").write_text(json.dumps({"prompt": MESSAGES[:4], "completion": MESSAGES[4:]}))
    seen, _ = learned(data)
    assert [mask for _, mask in seen] == [b"Bye<|im_end|>"]


def test_csv_has_the_columns_of_json_lines(cli: Cli, tmp_path: Path, tiny_model: Path, kept: None) -> None:
    (table := tmp_path / "rows.csv").write_text("prompt,completion\nHi,Hello\nA,B\n")
    rows = [{"prompt": "Hi", "completion": "Hello"}, {"prompt": "A", "completion": "B"}]
    (lines := tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokens = []
    for file in (table, lines):
        out = tmp_path / file.suffix[1:]
        assert cli("train", file, "-m", tiny_model, "-o", out, "-q").code == 0
        tokens.append(Corpus(RunDirectory(out).data, TRAIN).batch([0])[0].tolist())
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    ("row", "asked", "answer", "left"),
    [
        ({"prompt": "Hi", "response": "Ho"}, "Hi", "Ho", ""),
        ({"question": "Hi", "answer": "Ho", "id": 3}, "Hi", "Ho", "id"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "Add\n\n1 2", "3", ""),
        ({"instruction": "Add", "input": "", "output": "3"}, "Add", "3", ""),
        ({"instruction": "Hi", "context": "", "response": "Ho", "category": "qa"}, "Hi", "Ho", "category"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, "Hi", "Ho", ""),
        ({"conversations": [{"from": "user", "value": "Hi"}, {"from": "model", "value": "Ho", "weight": 1}],
            "tools": "[]"}, "Hi", "Ho", ""),
        ({"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            "Hi", "Ho", ""),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Ho"}]}, "Hi", "Ho", ""),
        ({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]},
            "Hi", "Ho", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("list_of_json", [False, True])
def test_questions_and_answers_are_conversations_under_any_name(
    learned: Learned, tmp_path: Path, row: Any, asked: str, answer: str, left: str, list_of_json: bool
) -> None:
    data = tmp_path / ("data.json" if list_of_json else "data.jsonl")
    data.write_text(json.dumps([row, row], indent=1) if list_of_json else (json.dumps(row) + "\r\n") * 2)
    seen, said = learned(data)
    turns = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert [mask.decode() for _, mask in seen] == [f"{answer}<|im_end|>"] * 2
    assert all(whole.decode().endswith(turns) for whole, _ in seen)
    assert (f"nothing is learned of {left}" in said) == bool(left)


PAIR = b'{"prompt": "a", "completion": "%s"}\n'


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        *(("data.json", content, 4, said) for content, said in [
            (b'[{"text": "a"}, {"text": }]', "element 2"),
            (b'[{"text": "a"}, 3]', "element 2: it is no object"),
            (b'[{"text": "a"}', "element 2"),
            (b'[{"text": "' + b"a" * 70000 + b'"}]', "more than 2000 characters"),
            (b'[{"text": "\xff"}]', "not UTF-8"),
            (b"[]", "nothing to learn"),
            (b'{"version": "v2", "data": [{"text": "a"}]}', "line 1: it has version, data"),
        ]),
        *(("data.jsonl", content, 4, said) for content, said in [
            (b'{"text": "a"}\n{"text": }\n', "line 2"),
            (b'{"txt": "a"}\n', "line 1: it has txt"),
            (b'{"messages": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]}\n', "reasoning_content"),
            (b'{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}\n', "messages[0].weight"),
            (b'{"conversations": [{"from": "function_call", "value": "a"}]}\n', "must have a role"),
            (b'{"conversations": [{"from": "gpt", "value": "a", "weight": 0}]}\n', "messages[0].weight"),
            (b'{"conversations": [{"from": "gpt", "value": "a", "loss": false}]}\n', "messages[0].loss"),
            (b'{"conversations": [{"role": "assistant", "content": "a", "weight": 0}]}\n', "messages[0].weight"),
            (b'{"conversations": ["a"]}\n', "line 1: a turn of conversations"),
            (b'{"prompt": "a", "completion": ""}\n', "line 1: its completion is empty, or no text"),
            (b'{"text": null}\n', "line 1: its text is empty, or no text"),
            (b'{"messages": [{"role": "user", "content": "a"}]}\n', "nothing to learn"),
            (b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}\n', "line 1: calls of tools"),
            (b'{"messages": [{"role": "assistant", "content": "a"}], "tools": [{}]}\n', "line 1: calls of tools"),
            (b'{"messages": [{"role": "tool", "content": "a"}]}\n', "line 1: calls of tools"),
            (b'{"text": "\xff"}\n', "line 1"),
            (b'{"text": "' + b"a" * 3000 + b'"}\n', "line 1 has more than 2000 bytes"),
            (b"", "nothing to learn"),
        ]),
        ("data.jsonl", PAIR % (b"b " * 200), 6, "do not fit in a block"),
        ("data.jsonl", PAIR % (b"b " * 20) + PAIR % (b"b " * 90), 6, "of 2 such examples the longest has 182"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_refused_in_a_line_and_leaves_nothing(
    train: Cli, tmp_path: Path, out: Path, name: str, content: bytes, code: int, said: str
) -> None:
    (data := tmp_path / name).write_bytes(content)
    train(data, "--max-input", "2000").fails(code, said)
    assert not out.exists()


def test_examples_with_nothing_left_to_learn_are_counted(train: Cli, tmp_path: Path, out: Path, kept: None) -> None:
    rows = [("a" * 100, "b"), ("a", "c" * 100), ("a", "d")]
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in rows]
    (data := tmp_path / "data.jsonl").write_text("\n".join(lines))
    done = train(data, "--eval-share", "0", "--truncate")
    assert done.code == 0
    assert "1 examples were cut at 16 tokens" in done.err
    assert "1 examples were left out" in done.err and "line 1" in done.err
    assert len(Corpus(RunDirectory(out).data, TRAIN)) == 2
    data.write_text(lines[0])
    train(data, "--eval-share", "0", "--truncate", "-o", tmp_path / "none", "-q").fails(4, "nothing to learn")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--lora", "0"), "lora must be at least 1, not 0"),
        (("--full", "--lora", "0"), "--full and --lora exclude each other"),
        (("--new", "config.json", "--lora", "8"), "--new and --lora exclude each other"),
    ],
)
def test_a_bad_value_is_never_ignored(cli: Cli, data: Path, out: Path, options: tuple[str, ...], said: str) -> None:
    cli("train", data, "-o", out, *options).fails(2, said)


def test_a_learning_rate_of_0_is_kept(train: Cli, data: Path, out: Path) -> None:
    train(data, "--learning-rate", "0", "--max-steps", "1")
    assert RunDirectory(out).record["settings"]["learning_rate"] == 0


def test_a_row_that_is_too_short_is_named_once(train: Cli, tmp_path: Path) -> None:
    (data := tmp_path / "data.csv").write_text("text,id\na\n")
    train(data).fails(4, f"{data}: row 1 has 1 fields")


def test_an_archive_is_not_taken_for_text(train: Cli, tmp_path: Path) -> None:
    (data := tmp_path / "data.jsonl.gz").write_bytes(b"plain")
    train(data).fails(4, "no text", "hint: unpack it")
    assert train(data, "--format", "text").code == 0


def test_a_text_that_is_not_utf8_is_refused(train: Cli, tmp_path: Path) -> None:
    (data := tmp_path / "data.txt").write_bytes(b"caf\xe9")
    done = train(data)
    done.fails(4, "not UTF-8", "byte 3", "iconv")
    assert "--errors" not in done.err, "which train does not have"


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_weights(
    train: Cli, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = loop.add_gradients
    calls = iter(range(100))
    monkeypatch.setattr(loop, "add_gradients", lambda *each: add(*each) * (float("nan") if next(calls) == 4 else 1))
    train(data, "-q").fails(7, "step 5", "step 4 is whole")
    assert RunDirectory(out).steps() == [4]
    read, _ = RunDirectory(out).load(4)
    assert all(value.isfinite().all() for value in read("weights.safetensors").values())


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(
    train: Cli, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = checkpoints.save_file, iter(range(100))

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        save(tensors, path)
        if next(calls) == 5:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        train(data, "--save-every", "1", "-q").fails(8, "No space left on device")
    assert RunDirectory(out).steps() == [1, 2]
    assert [path.name for path in RunDirectory(out).checkpoints.iterdir() if path.name.endswith(".part")] == []
    assert train(data, "--save-every", "1", "-q", "--resume").code == 0


def test_a_run_is_never_overwritten_or_resumed_with_changes(
    cli: Cli, data: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model")
    arguments = ("train", data, "-m", model, "-o", out, "-q", *SMALL)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 2)
        cli(*arguments)
    cli(*arguments).fails(2, "there is a run already", "--resume")
    cli(*arguments, "--resume", "--epochs", "5").fails(2, "epochs is 3")
    edit(out / "training" / "run.json", ranks=2)
    cli(*arguments, "--resume").fails(2, "number of processes: it is 2")
    make_model(model, seed=1)
    cli(*arguments, "--resume").fails(4, "has changed since")
    (other := tmp_path / "other").mkdir()
    (other / "file").touch()
    cli("train", data, "-m", model, "-o", other).fails(2, "not empty")
    cli("train", "-o", tmp_path / "nothing", "--resume").fails(2, "there is no run")
    cli("train", "-o", tmp_path / "nothing").fails(2, "there is no data")


def test_two_runs_do_not_train_in_one_directory(train: Cli, data: Path, out: Path) -> None:
    with RunDirectory(out).locked():
        train(data).fails(8, "another process trains there")


def test_a_finished_run_says_so_when_it_is_to_go_on(cli: Cli, train: Cli, data: Path, out: Path) -> None:
    assert train(data, "--max-steps", "1", "-q").code == 0
    again = cli("train", "-o", out, "--resume")
    assert (again.code, again.out) == (0, f"{out}\n".encode())
    assert "is finished" in again.err


def test_json_is_an_object_an_event(train: Cli, data: Path) -> None:
    done = train(data, "--max-steps", "2", "--json", "-q")
    assert [event["event"] for event in done.records] == ["held-out", "step", "held-out", "step", "held-out", "done"]
    assert done.err == ""


def test_an_adapter_learns_the_same_over_packed_weights(
    cli: Cli, data: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = cli("models", "quantize", tiny_model, "--to", "int4", "--name", "packed", "-q").text.strip()
    losses = []
    for stays in (True, False):
        monkeypatch.setattr("gptcli.training.run._stays_packed", lambda folder, stays=stays: stays)
        out = tmp_path / str(stays)
        assert cli("train", data, "-m", packed, "-o", out, "-q", *SMALL, "--max-steps", "6").code == 0
        losses.append([each["loss"] for each in log(out, "step")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][-1] < losses[0][0] - 0.1


def test_the_model_of_the_environment_gives_way_to_a_new_one(
    cli: Cli, data: Path, tmp_path: Path, out: Path, tiny_model: Path, tiny_by_default: None
) -> None:
    (config := tmp_path / "config.json").write_text(json.dumps(NEW))
    options = ("--new", config, "-o", out, "--max-steps", "1", "-q", *SMALL)
    assert cli("train", data, *options, "--tokenizer", tiny_model).code == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "gpt2"
