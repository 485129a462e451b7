"""Every step's loss beside transformers' Trainer, on the same data, in the same order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import WeightPlan, load_decoder
from gptcli.checkpoint.recipes import sources
from gptcli.cli.app import run
from gptcli.training.checkpoints import RunDirectory
from gptcli.training.corpus import TRAIN, Corpus
from gptcli.training.loop import not_decayed
from tests.parity.test_families import ROW
from tests.tiny import TEXT
from tests.training.kills import logged

OPTIONS = [
    "--full", "--block-size", "16", "-b", "3", "--epochs", "2", "--learning-rate", "0.01", "--eval-share", "0.1",
    "--weight-decay", "0.1", "--warmup", "2", "--seed", "7",
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (file := tmp_path / "data.txt").write_text(TEXT * 4)
    return file


def write_model(path: Path, title: str) -> Path:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return ROW[title].make(path, **dropout if title == "gpt2" else {})


def trained(model: Path, data: Path, out: Path, *options: str) -> list[float]:
    """The losses that `gptcli train` logs."""
    assert run(["train", str(data), "-m", str(model), "-o", str(out), "-q", *OPTIONS, *options]) == 0
    return logged(out)


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, corpus: Corpus) -> None:
        self._rows = [corpus.batch([index])[0][0] for index in range(len(corpus))]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        # The Trainer would also count the first label, which no token predicts.
        return {"input_ids": row, "labels": torch.cat([torch.tensor([-100]), row[1:]])}


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([row["input_ids"] for row in rows], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=-100),
    }


def their_losses(model: Path, rows: Rows, out: Path) -> list[float]:
    arguments = TrainingArguments(
        str(out), per_device_train_batch_size=3, num_train_epochs=2, learning_rate=0.01, weight_decay=0.1,
        warmup_steps=2, lr_scheduler_type="cosine", logging_strategy="no", seed=7, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    reference = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    losses: list[float] = []

    class Exact(Trainer):
        """Keeps losses that are not rounded."""

        def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*given, **named)
            losses.append(loss.item())
            return loss

    trainer = Exact(reference, arguments, train_dataset=rows, data_collator=padded)
    trainer.train()
    return losses


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", ["gpt2", "llama", "qwen3", "gemma3", "phi3", "mixtral", "gpt_oss", "apertus"])
def test_every_step_has_the_loss_of_the_trainer(
    title: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model", title)
    kept: list[Rows] = []
    finish: Callable[[RunDirectory], None] = RunDirectory.finish

    def keep_rows(directory: RunDirectory) -> None:
        kept.append(Rows(Corpus(directory.data, TRAIN)))
        finish(directory)

    monkeypatch.setattr(RunDirectory, "finish", keep_rows)
    ours = trained(model, data, tmp_path / "out")
    theirs = their_losses(model, kept[0], tmp_path / "theirs")
    assert len(ours) > 10 and ours[-1] < ours[0] - 0.5
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    in_parts = trained(model, data, tmp_path / "parts", "--micro-batch", "2", "--save-memory")
    assert max(abs(a - b) for a, b in zip(ours, in_parts, strict=True)) < 1e-4


@pytest.mark.parametrize("title", ["gpt_oss", "bamba", "gemma2"])
def test_decay_spares_what_the_trainer_spares(title: str, tmp_path: Path) -> None:
    reference = ROW[title].write(tmp_path)
    decayed = Trainer.get_decay_parameter_names(None, reference.model)
    theirs = {name: name not in decayed for name, _ in reference.model.named_parameters()}
    folder = ModelFolder.open(reference.path)
    decoder = load_decoder(folder, WeightPlan(torch.device("cpu"), torch.float32, "dense"))
    spared, compared = not_decayed(decoder), set[tuple[bool, bool]]()
    for name, recipe in folder.architecture.parameters.items():
        for tensor in theirs.keys() & {*sources(recipe)}:
            assert theirs[tensor] == (decoder.get_parameter(name) in spared), name
            compared.add((theirs[tensor], decoder.get_parameter(name).dim() > 1))
    assert compared >= {(True, False), (False, True)}
    assert ((True, True) in compared) == (title == "gpt_oss"), "biases of experts"


def test_bf16_learns_as_fp32_does_and_keeps_its_weights_and_moments_in_fp32(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, saved = write_model(tmp_path / "model", "llama"), tmp_path / "bf16"
    exact = trained(model, data, tmp_path / "fp32")
    monkeypatch.setattr(RunDirectory, "finish", lambda directory: None)  # its checkpoints stay
    rounded = trained(model, data, saved, "--dtype", "bf16", "--save-every", "2")
    apart = [abs(a - b) for a, b in zip(exact, rounded, strict=True)]
    assert 0 < max(apart) < 0.05
    directory = RunDirectory(saved)
    read, _ = directory.load(directory.steps()[-1])
    for tensors in (load_file(saved / "model.safetensors"), read("weights.safetensors"), read("optimizer.safetensors")):
        assert {value.dtype for value in tensors.values()} == {torch.float32}
    name, after = next(iter(read("weights.safetensors").items()))
    assert not torch.equal(after, after.bfloat16().float()), f"{name} was rounded"
