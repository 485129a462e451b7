"""The gated short convolution of LFM2 (Liquid AI, 2025), which most of its layers have instead of attention."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from gptcli.model.config import ShortConvolutionConfig
from gptcli.model.linear import Linear
from gptcli.model.position import Position, TextPosition
from gptcli.model.recurrence.convolution import Convolution


class ShortConvolution(nn.Module):
    """Projects to two gates and a value; one gate before the convolution, the other after it; projects back."""

    def __init__(self, config: ShortConvolutionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.into = Linear(hidden_size, 3 * hidden_size, bias=config.bias)
        self.convolution = Convolution(hidden_size, config.kernel, config.bias)
        self.out = Linear(hidden_size, hidden_size, bias=config.bias)

    def forward(self, x: Tensor, position: Position, block: int) -> Tensor:
        """x: (B, T, hidden) to the same shape. block: its index in the decoder."""
        before, after, value = self.into(x).chunk(3, -1)
        out: Tensor = self.out(after * position.text_by_text(partial(self._convolved, block), before * value))
        return out

    def _convolved(self, block: int, position: TextPosition, x: Tensor) -> Tensor:
        (tail,) = position.states.now[block]
        sums: Tensor
        sums, tail = self.convolution(x, tail)
        position.states.put(block, (tail,))
        return sums
