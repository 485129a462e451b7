from __future__ import annotations

from itertools import cycle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gptcli.model import linear
from gptcli.model.linear import Linear, project


@pytest.fixture(params=[True, False], ids=["in slices", "whole"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether slices count as the faster way."""
    monkeypatch.setattr(linear, "_slices_are_faster", lambda vectors, threads: request.param)


@pytest.mark.parametrize("rows", [1, 7, 32, 48, 96, 257])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (4, 1), (2, 2), (1, 5), (3, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_torch(rows: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, x = torch.randn(rows, 24).to(dtype), torch.randn(*shape, 24).to(dtype)
    out = project(x, weight)
    assert out.shape == (*shape, rows)
    torch.testing.assert_close(out, F.linear(x, weight))


def test_a_bias_is_added() -> None:
    layer = Linear(8, 64)
    nn.init.normal_(layer.weight)  # a new layer has whatever was in memory
    nn.init.normal_(layer.bias)
    x = torch.randn(1, 1, 8)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_view_of_something_larger_is_taken_as_it_is() -> None:
    weight, x = torch.randn(64, 8), torch.randn(2, 6, 16)[:, ::6, ::2]
    torch.testing.assert_close(project(x, weight), F.linear(x, weight))


@pytest.mark.parametrize(("whole", "sliced", "faster"), [(1.0, 0.7, True), (1.0, 0.9, False), (1.0, 2.0, False)])
def test_slices_are_taken_where_they_are_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, whole: float, sliced: float, faster: bool
) -> None:
    monkeypatch.undo()
    seconds = cycle([whole, sliced])
    monkeypatch.setattr(linear, "_seconds", lambda run: next(seconds))
    assert linear._slices_are_faster.__wrapped__(1, 2) is faster
