"""The settings of a training run; run.json keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from gptcli.errors import UsageError

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A run's settings.

    data: files, `-` for stdin. model: None for random weights. lora: the rank; None trains every weight. block_size:
    tokens. batch_size: sequences. micro_batch: sequences run at once; None: all of a batch. max_steps: None: see
    `epochs`. warmup: steps.
    """

    data: tuple[str, ...]
    eval: str | None = None
    eval_share: float = 0.05
    format: Literal["auto", "text", "jsonl", "json", "csv"] = "auto"
    model: str | None = None
    new: str | None = None
    vocab_size: int = 8192
    tokenizer: str | None = None
    lora: int | None = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()
    block_size: int = 128
    truncate: bool = False
    batch_size: int = 4
    micro_batch: int | None = None
    epochs: int = 3
    max_steps: int | None = None
    learning_rate: float = 5e-4
    schedule: Schedule = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    dtype: Literal["fp32", "bf16"] = "fp32"
    save_memory: bool = False
    fsdp: bool = False
    device: str = "auto"
    threads: int = 1
    seed: int = 42
    eval_every: int | None = None
    save_every: int | None = None
    save_minutes: float = 10.0
    sample: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.model is not None and self.new is not None:
            raise UsageError("--model and --new exclude each other: a model is trained, or a new one is made")
        least: dict[str, float] = {
            "vocab_size": 257, "lora": 1, "block_size": 2, "batch_size": 1, "micro_batch": 1, "epochs": 1,
            "max_steps": 1, "warmup": 0, "eval_every": 1, "save_every": 1,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{_dashed(name)} must be at least {low}, not {value}")
        for name in ("learning_rate", "weight_decay", "clip", "save_minutes", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{_dashed(name)} must be at least 0, not {value}")
        for name in ("eval_share", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{_dashed(name)} must be at least 0 and below 1, not {getattr(self, name)}")

    @property
    def rows(self) -> int:
        """Sequences that are run at once."""
        return min(self.micro_batch or self.batch_size, self.batch_size)

    def steps(self, sequences: int, batch: int) -> int:
        """Optimizer steps of the whole run, with so many sequences in each."""
        return self.max_steps or self.epochs * math.ceil(sequences / batch)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0: warm-up from 0, then the schedule down to 0."""
        if step < self.warmup:
            return self.learning_rate * step / max(1, self.warmup)
        done = (step - self.warmup) / max(1, steps - self.warmup)
        match self.schedule:
            case "cosine":
                return self.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
            case "linear":
                return self.learning_rate * max(0.0, 1.0 - done)
        return self.learning_rate

    @property
    def record(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Reads `record`. Raises UsageError for an unknown name, from a newer version say."""
        known = {field.name for field in fields(cls)}
        if unknown := set(record) - known:
            raise UsageError(f"there is no setting {min(unknown)}")
        values: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in record.items()
        }
        return cls(**values)


def _dashed(name: str) -> str:
    return name.replace("_", "-")
