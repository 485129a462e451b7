"""The events of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """A finished step: its mean loss in nats per learned token, rate, norm of the gradient, tokens and seconds."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    learned: int
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """The held-out loss after `step` steps, in nats per token."""

    step: int
    held_out_loss: float


@dataclass(frozen=True)
class Sampled:
    """The model's continuation of a prompt after `step` steps."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint of `step` steps is on disk."""

    step: int


TrainingEvent = Step | Evaluated | Sampled | Saved


def event_record(event: TrainingEvent) -> dict[str, Any]:
    """An event as JSON."""
    kinds = {Step: "step", Evaluated: "held-out", Sampled: "sample", Saved: "checkpoint"}
    return {"event": kinds[type(event)], **asdict(event)}
