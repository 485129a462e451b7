"""Embeddings of every token for every layer (Gemma 3n): each layer gates and adds its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptcli.model.config import DecoderConfig, LayerInputsConfig, NormConfig
from gptcli.model.linear import Embedding, Linear
from gptcli.model.mlp import activation
from gptcli.model.norm import Norm


class LayerInputs(nn.Module):
    """The inputs of all layers: a table's row for the token, plus its projected embedding."""

    def __init__(self, config: DecoderConfig, inputs: LayerInputsConfig) -> None:
        super().__init__()
        self.config, width = inputs, len(config.blocks) * inputs.width
        self.embed = Embedding(inputs.vocab_size, width)
        self.project = Linear(config.hidden_size, width, bias=False)
        self.norm = Norm(config.norm, inputs.width)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """tokens: (B, T); x: their embeddings, (B, T, hidden). Returns (layers, B, T, width)."""
        B, T, hidden = x.shape
        known = torch.where(tokens < self.config.vocab_size, tokens, 0)
        # In the weights' precision, as the models were trained.
        of_tokens = self.embed(known) * torch.tensor(self.config.width**0.5, dtype=x.dtype)
        projected = self.norm((self.project(x) * hidden**-0.5).view(B, T, -1, self.config.width))
        inputs: Tensor = (projected + of_tokens.view_as(projected)) * 2**-0.5
        return inputs.movedim(2, 0)


class LayerInput(nn.Module):
    """What a layer adds: its input, gated by the residual stream, projected back."""

    def __init__(self, inputs: LayerInputsConfig, hidden_size: int, norm: NormConfig) -> None:
        super().__init__()
        self.activation = activation(inputs.activation)
        self.gate = Linear(hidden_size, inputs.width, bias=False)
        self.out = Linear(inputs.width, hidden_size, bias=False)
        self.norm = Norm(norm, hidden_size)

    def forward(self, x: Tensor, layer_input: Tensor) -> Tensor:
        """x: (B, T, hidden) to the same shape. layer_input: (B, T, width)."""
        out: Tensor = self.norm(self.out(self.activation(self.gate(x)) * layer_input))
        return out
