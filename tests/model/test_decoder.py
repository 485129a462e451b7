from __future__ import annotations

from dataclasses import replace

import pytest

from gptcli.errors import UnsupportedArchitecture
from gptcli.model.config import NormConfig
from tests.kernels.test_programs import BLOCK, decoder_of, of


@pytest.mark.parametrize("field", ["attention", "state", "mlp"])
def test_a_block_whose_layer_is_unknown_is_refused_by_its_field(field: str) -> None:
    unknown = NormConfig(kind="rms", eps=1e-5)
    with pytest.raises(UnsupportedArchitecture, match=f"no layer for {field} = NormConfig"):
        decoder_of(of(replace(BLOCK, **{field: unknown})))  # type: ignore[arg-type]
