"""Trains low-rank updates of linear layers (Hu et al., 2021), and writes them in PEFT's format."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.checkpoint.adapters import PREFIX, Rows, adaptable
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.recipes import Transposed
from gptcli.errors import UsageError
from gptcli.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gptcli.gguf.safetensors_writer import write_json
from gptcli.model.decoder import Decoder


class Update(nn.Module):
    """The factors of dropout(x) @ down.T @ up.T * scale. It begins as zero, as `up` does."""

    def __init__(self, columns: int, rows: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale, self.dropout = scale, dropout


class TrainedLinear(nn.Module):
    """A frozen linear layer with an update for the rows of some of its modules."""

    def __init__(self, base: nn.Module, rows: Rows, updates: Mapping[str, Update]) -> None:
        """updates: by the names of modules in `rows`."""
        super().__init__()
        self.base, self.rows = base, rows
        named = {str(index): updates.get(module) for index, (module, _) in enumerate(rows.modules)}
        self.updates = nn.ModuleDict({index: update for index, update in named.items() if update is not None})

    @property
    def _own(self) -> dict[str, Update]:
        return {index: update for index, update in self.updates.items() if isinstance(update, Update)}

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) to (..., out_features)."""
        out: Tensor = self.base(x)
        # One product for all modules, added as it is computed: the rows of other modules get zero.
        return torch.addmm(out.flatten(0, -2), self._lowered(x.flatten(0, -2)), self._up().mT).view_as(out)

    def _lowered(self, x: Tensor) -> Tensor:
        """x: (n, in_features) to (n, ranks of all updates)."""
        updates = self._own.values()
        if self.training and any(update.dropout for update in updates):  # each update drops other entries of x
            return torch.cat([F.linear(F.dropout(x, update.dropout), update.down) for update in updates], -1)
        return F.linear(x, torch.cat([update.down for update in updates]))

    def _up(self) -> Tensor:
        """The scaled factor of all rows, (out_features, ranks of all updates)."""
        updates = {index: update.up * update.scale for index, update in self._own.items()}
        empty = next(iter(updates.values())).new_zeros
        blocks = [updates.get(str(index), empty(rows, 0)) for index, (_, rows) in enumerate(self.rows.modules)]
        up: Tensor = torch.block_diag(*blocks)
        return up if self.rows.order is None else up[self.rows.order]


class Lora:
    """The updates of a decoder's layers, by their modules' names in transformers."""

    def __init__(
        self, folder: ModelFolder, decoder: Decoder, rank: int, alpha: float, dropout: float, targets: Collection[str]
    ) -> None:
        """Adds updates to the layers of a decoder whose weights are frozen.

        targets: the last parts of modules' names; none: all linear layers except states, routers and experts, which
        PEFT does not adapt. Raises UsageError for one that no layer has.
        """
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.updates: dict[str, Update] = {}
        layers = adaptable(folder)
        names = {module.rpartition(".")[2] for rows in layers.values() for module, _ in rows.modules}
        if unknown := sorted(set(targets) - names):
            raise UsageError(f"no layer is called {unknown[0]}", f"there are {', '.join(sorted(names))}")
        for path, rows in layers.items():
            if not targets and (".state." in path or path.endswith(("router", "shared_gate"))):
                continue
            base = decoder.get_submodule(path)
            columns = folder.parameter_shape(folder.architecture.parameters[f"{path}.weight"])[1]
            own = {
                module: Update(columns, count, rank, alpha / rank, dropout)
                for module, count in rows.modules
                if not targets or module.rpartition(".")[2] in targets
            }
            if own:
                decoder.set_submodule(path, TrainedLinear(base, rows, own))
                self.updates |= own
        if not self.updates:
            raise UsageError("no layer of this model can have an adapter", "--full trains every weight")
        recipes = folder.architecture.parameters.values()
        self._transposed = any(isinstance(recipe, Transposed) for recipe in recipes)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by their names in files."""
        named: dict[str, nn.Parameter] = {}
        for module, update in self.updates.items():
            named |= {f"{module}.lora_A.weight": update.down, f"{module}.lora_B.weight": update.up}
        return named

    def write(self, target: Path, base: str, values: Mapping[str, Tensor]) -> None:
        """Writes adapter_config.json and adapter_model.safetensors into a directory. Raises OSError.

        values: those of `parameters`, gathered from all processes.
        """
        tensors = {f"{PREFIX}{name}": value.cpu().contiguous() for name, value in values.items()}
        save_file(tensors, target / ADAPTER_WEIGHTS, {"format": "pt"})
        write_json(
            target / ADAPTER_CONFIG,
            {
                "base_model_name_or_path": base,
                "bias": "none",
                "fan_in_fan_out": self._transposed,
                "inference_mode": True,
                "lora_alpha": self.alpha,
                "lora_dropout": self.dropout,
                "peft_type": "LORA",
                "r": self.rank,
                "target_modules": sorted({module.rpartition(".")[2] for module in self.updates}),
                "task_type": "CAUSAL_LM",
            },
        )
