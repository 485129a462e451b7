"""The loop: batches, gradients, optimizer steps, held-out losses, samples, checkpoints; yields events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from gptcli.errors import Diverged
from gptcli.model.decoder import Decoder
from gptcli.training.checkpoints import RunDirectory
from gptcli.training.corpus import Corpus
from gptcli.training.events import Evaluated, Sampled, Saved, Step, TrainingEvent
from gptcli.training.loss import add_gradients, loss_of
from gptcli.training.parallel.data_parallel import Processes
from gptcli.training.parallel.sharding import own_shard, whole
from gptcli.training.settings import TrainSettings

_EVALUATIONS = 10  # in a run, unless the settings say otherwise
_MOST_HELD_OUT = 128  # sequences in a held-out loss
_WEIGHTS, _OPTIMIZER = "weights", "optimizer"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter


Sampler = Callable[[str], str]


def not_decayed(decoder: Decoder) -> set[nn.Parameter]:
    """Parameters without weight decay: biases and norms' weights of any shape, as in transformers' Trainer."""
    return {
        each
        for name, each in decoder.named_parameters()
        if "norm" in name or "bias" in (leaf := name.rpartition(".")[2]) or leaf == "correction"
    }


class Training:
    """One run, step by step.

    parameters: the trained ones, by name. sample: continues a prompt. Checkpoints have all that a run depends on, so a
    resumed run computes the same.
    """

    def __init__(
        self,
        decoder: Decoder,
        parameters: Mapping[str, nn.Parameter],
        train: Corpus,
        held_out: Corpus,
        settings: TrainSettings,
        directory: RunDirectory,
        sample: Sampler,
        processes: Processes,
    ) -> None:
        self._processes, self._size = processes, settings.batch_size * processes.ranks  # sequences of a step
        self.decoder, self.parameters, self.settings = decoder, dict(parameters), settings
        self.step, self.steps = 0, settings.steps(len(train), self._size)
        self._train, self._held_out, self._directory, self._sample = train, held_out, directory, sample
        self._device = next(iter(parameters.values())).device
        kept = not_decayed(decoder)
        decayed = [each for each in parameters.values() if each not in kept]
        others = [each for each in parameters.values() if each in kept]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            fused=True,
        )
        self._order: tuple[int, list[int]] = (-1, [])
        torch.manual_seed(settings.seed + processes.rank)

    def resume(self) -> bool:
        """Goes back to the newest checkpoint, if there is one."""
        if not (steps := self._directory.steps()):
            return False
        self.step = steps[-1]
        read, state = self._directory.load(self.step)
        weights, moments = read(self._file(_WEIGHTS)), read(self._file(_OPTIMIZER))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                own_shard(parameter).copy_(weights[name])
                if f"{name}.step" not in moments:  # it never had a gradient
                    continue
                kept = {key: moments[f"{name}.{key}"] for key in _MOMENTS}
                named = {
                    key: torch.zeros_like(parameter if value.dim() else value, device=self._device)
                    for key, value in kept.items()
                }
                for key, value in kept.items():
                    own_shard(named[key]).copy_(value)
                self._optimizer.state[parameter] = named
        generator = bytes.fromhex(state["generators"][self._processes.rank])
        torch.set_rng_state(torch.tensor(list(generator), dtype=torch.uint8))
        return True

    def run(self, stopped: Callable[[], bool]) -> Iterator[TrainingEvent]:
        """Trains to the end, or until `stopped`, which leaves a checkpoint.

        Raises OutputError, and Diverged for NaN or infinity; the last good step is then saved.
        """
        saved_at = time.monotonic()
        every = self.settings.eval_every or max(1, math.ceil(self.steps / _EVALUATIONS))
        if self.step == 0:
            yield from self._look()
        while self.step < self.steps and not self._processes.any(stopped(), self._device):
            yield self._advance()
            if self.step % every == 0 or self.step == self.steps:
                yield from self._look()
            late = self._processes.broadcast(time.monotonic() - saved_at >= 60 * self.settings.save_minutes)
            if late or (self.settings.save_every and self.step % self.settings.save_every == 0):
                yield self._save_once()
                saved_at = time.monotonic()
        if self.step < self.steps:
            yield self._save_once()

    def _advance(self) -> Step:
        started = time.monotonic()
        rate = self.settings.rate(self.step, self.steps)
        chosen = self._chosen()
        batch = self._batches(chosen)
        counts = torch.tensor([[each.numel(), learned[:, 1:].sum()] for each, learned in batch] or [[0, 0]])
        tokens, total = map(int, self._processes.sum(counts.sum(0).to(self._device)))
        self._optimizer.zero_grad()
        with self._precision():
            losses = [add_gradients(self.decoder, *self._moved(each), total) for each in batch]
        own_loss = torch.stack(losses).sum() if losses else torch.zeros((), device=self._device)
        loss = (self._processes.sum(own_loss) / total).item()
        trained = list(self.parameters.values())
        if not self.settings.fsdp:  # which sums them itself
            self._processes.sum_gradients(trained)
        total_norm = nn.utils.get_total_norm([each.grad for each in trained if each.grad is not None])
        norm = whole(total_norm).item()
        if not math.isfinite(loss) or not math.isfinite(norm):
            self._save_once()
            raise Diverged(
                f"step {self.step + 1} computed NaN or infinity: its loss is {loss}, its gradient's norm {norm}; "
                f"the checkpoint of step {self.step} is whole",
                "train again with a smaller --learning-rate",
            )
        if norm > (self.settings.clip or math.inf):
            nn.utils.clip_grads_with_norm_(trained, self.settings.clip, total_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.step += 1
        return Step(self.step, loss, rate, norm, tokens, total, time.monotonic() - started)

    def _batches(self, chosen: list[int]) -> list[tuple[Tensor, Tensor]]:
        """This process's batches of a step's sequences."""
        own, rows = self._processes.part(chosen), self.settings.rows
        batches = [self._train.batch(own[start : start + rows]) for start in range(0, len(own), rows)]
        if self.settings.fsdp:  # all run equally many: each needs the others' shards of the weights
            tokens, learned = self._train.batch(chosen[:1])
            most = len(self._processes.part(chosen, 0))
            batches += [(tokens, torch.zeros_like(learned))] * (math.ceil(most / rows) - len(batches))
        return batches

    def _chosen(self) -> list[int]:
        """The sequences of this step."""
        size = self._size
        epoch, index = divmod(self.step, math.ceil(len(self._train) / size))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.settings.seed + epoch)
            self._order = epoch, torch.randperm(len(self._train), generator=generator).tolist()
        return self._order[1][index * size : (index + 1) * size]

    def _look(self) -> Iterator[TrainingEvent]:
        """The held-out loss, and samples; by the first process alone, unless it needs the others' shards."""
        if not (self._processes.leads or self.settings.fsdp):
            return
        if len(self._held_out):
            yield Evaluated(self.step, self.held_out_loss())
        for prompt in self.settings.sample:
            yield Sampled(self.step, prompt, self._sample(prompt))

    def held_out_loss(self) -> float:
        """The mean loss of the held-out sequences, at most _MOST_HELD_OUT of them, evenly spread."""
        count = min(len(self._held_out), _MOST_HELD_OUT)
        chosen = [index * len(self._held_out) // count for index in range(count)]
        losses, total, rows = 0.0, 0, self.settings.rows
        for start in range(0, count, rows):
            tokens, learned = self._moved(self._held_out.batch(chosen[start : start + rows]))
            with self._precision():
                losses += loss_of(self.decoder, tokens, learned).item()
            total += int(learned[:, 1:].sum())
        return losses / total

    def _save_once(self) -> Saved:
        if self._processes.broadcast(self.step in self._directory.steps()):
            return Saved(self.step)
        files = dict[str, dict[str, Tensor]]()
        if self._processes.leads or self.settings.fsdp:
            states = {name: self._optimizer.state.get(each, {}) for name, each in self.parameters.items()}
            moments = {f"{name}.{key}": own_shard(each) for name, kept in states.items() for key, each in kept.items()}
            weights = {name: own_shard(each) for name, each in self.parameters.items()}
            files = {self._file(_WEIGHTS): weights, self._file(_OPTIMIZER): moments}
        generators = self._processes.gather(bytes(torch.get_rng_state().tolist()).hex())
        self._directory.save(self.step, files, {"step": self.step, "generators": generators}, self._processes)
        return Saved(self.step)

    def _file(self, name: str) -> str:
        return f"{name}-{self._processes.rank}.safetensors" if self.settings.fsdp else f"{name}.safetensors"

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.dtype == "bf16")

    def _moved(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        tokens, learned = batch
        return tokens.to(self._device), learned.to(self._device)
