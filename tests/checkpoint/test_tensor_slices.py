from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.safetensors_header import read_header
from gptcli.checkpoint.weights import tensor_source
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.quant.affine import quantize_affine
from gptcli.quant.fp8 import fp8_weight
from gptcli.quant.mxfp4 import Mxfp4Weight

Ranges = tuple[tuple[int, int], ...]


def ranges(size: int) -> st.SearchStrategy[Ranges]:
    """One or two ranges within a size, none empty, in order."""
    edges = st.lists(st.integers(0, size), min_size=2, max_size=4, unique=True).map(sorted)
    return edges.map(lambda found: tuple(zip(found[::2], found[1::2], strict=False)))


def kept(values: Tensor, axis: int, chosen: Ranges) -> Tensor:
    return torch.cat([values.narrow(axis, start, stop - start) for start, stop in chosen], axis)


@pytest.mark.parametrize("page", [1, 64, 1 << 20])
@given(data=st.data())
def test_a_part_of_a_tensor_is_what_a_slice_of_all_of_it_is(
    page: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.lists(st.integers(2, 7), min_size=1, max_size=3))
    axis = -data.draw(st.integers(1, len(shape)))
    chosen = data.draw(ranges(shape[axis]))
    values = torch.rand(shape).to(data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    file = tmp_path_factory.mktemp("part") / "model.safetensors"
    save_file({"before": torch.zeros(3), "x": values}, file)
    folder = cast(ModelFolder, SimpleNamespace(tensors=read_header(file), stamps={}))
    with pytest.MonkeyPatch.context() as patch, TensorSource(folder) as source:
        patch.setattr(tensor_source, "_PAGE", page)
        part = source.slice("x", axis, chosen)
        assert part.equal(kept(values, axis, chosen))
        if page == 1:
            assert source.bytes_read == part.numel() * part.element_size()


PACKED: dict[str, Any] = {
    "int4": lambda values: quantize_affine(values, 4),
    "int8": lambda values: quantize_affine(values, 8),
    "fp8": lambda values: fp8_weight(values.to(torch.float8_e4m3fn), torch.rand(2, 2), (3, 96)),
    "fp8 by row": lambda values: fp8_weight(values.to(torch.float8_e4m3fn), torch.rand(6), (1, 1)),
    "mxfp4": lambda values: Mxfp4Weight(
        torch.randint(0, 256, (6, 80), dtype=torch.uint8), torch.randint(120, 130, (6, 5), dtype=torch.uint8)
    ),
}


@pytest.mark.parametrize("kind", PACKED)
@given(chosen=ranges(160))
def test_columns_of_a_packed_weight_are_those_of_its_values(kind: str, chosen: Ranges) -> None:
    weight = PACKED[kind](torch.rand(6, 160))
    part = weight.columns(chosen)
    if part is not None:
        assert part.expanded().equal(kept(weight.expanded(), -1, chosen))
    group = {"fp8": None, "fp8 by row": 1}.get(kind, 32)
    if group is not None and all(edge % group == 0 for each in chosen for edge in each):
        assert part is not None
