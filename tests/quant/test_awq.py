from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from tests.parity.reference import write_reference
from tests.quant.repacked import Packed, agrees, is_matrix, repack, words

GROUP = 32


def in_awq_order(row: list[int]) -> list[int]:
    """Reorders outputs as AutoAWQ does: of every eight, the even ones first."""
    return [row[start + output] for start in range(0, len(row), 8) for output in (0, 2, 4, 6, 1, 3, 5, 7)]


def pack(name: str, weight: Tensor) -> Packed | None:
    """A random AWQ matrix of the weight's shape."""
    if not is_matrix(name):
        return None
    outputs, inputs = weight.shape
    q = torch.randint(0, 16, (inputs, outputs))
    zeros = torch.randint(0, 16, (inputs // GROUP, outputs))
    scales = (torch.rand(inputs // GROUP, outputs) * 0.02 + 0.01).half()
    meant = scales.repeat_interleave(GROUP, 0).float() * (q - zeros.repeat_interleave(GROUP, 0))

    def packed(values: Tensor) -> Tensor:
        return torch.tensor([words(in_awq_order(row), 4) for row in values.tolist()], dtype=torch.int32)

    return {"qweight": packed(q), "qzeros": packed(zeros), "scales": scales}, meant.t()


def settings(**fields: object) -> dict[str, object]:
    known = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return {"quantization_config": known | fields}


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2, because its q, k and v have biases."""
    return write_reference(tmp_path_factory.mktemp("qwen2"), "qwen2", intermediate_size=96, num_hidden_layers=2).path


def test_an_awq_model_computes_with_what_is_meant(qwen2: Path, tmp_path: Path) -> None:
    agrees(*repack(qwen2, tmp_path, pack, **settings()))


@pytest.mark.parametrize(("fields", "complaint", "kind"), [
    ({"version": "gemv"}, "version = gemv", UnsupportedArchitecture),
    ({"bits": 3}, "bits = 3", UnsupportedArchitecture),
    ({"zero_point": False}, "zero_point = False", UnsupportedArchitecture),
    ({"group_size": 16}, ".qzeros is", BrokenCheckpoint),
    ({"group_size": 40}, "no groups of 40", BrokenCheckpoint),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(
    qwen2: Path, tmp_path: Path, fields: dict[str, object], complaint: str, kind: type[Exception]
) -> None:
    packed, _ = repack(qwen2, tmp_path, pack, **settings(**fields))
    with pytest.raises(kind, match=complaint):
        _ = ModelFolder.open(packed).architecture
