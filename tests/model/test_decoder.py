from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gptcli.errors import UnsupportedArchitecture
from gptcli.model import attention
from gptcli.model.config import Alibi, AttentionConfig, NormConfig
from tests.kernels.test_programs import BLOCK, decoder_of, of


@pytest.mark.parametrize("field", ["attention", "state", "mlp"])
def test_a_block_whose_layer_is_unknown_is_refused_by_its_field(field: str) -> None:
    unknown = NormConfig(kind="rms", eps=1e-5)
    with pytest.raises(UnsupportedArchitecture, match=f"no layer for {field} = NormConfig"):
        decoder_of(of(replace(BLOCK, **{field: unknown})))  # type: ignore[arg-type]


@pytest.mark.parametrize("addition", [{}, {"sinks": True}, {"softcap": 5.0}, {"alibi": Alibi()}], ids=str)
def test_attention_keeps_scores_exactly_where_no_fused_kernel_runs(
    addition: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AttentionConfig(heads=2, kv_heads=2, head_dim=4, rope=None, scale=0.5, **addition)
    fused = []
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda q, *rest, **options: fused.append(q.shape) or q
    )
    q, kv = torch.ones(1, 3, 2, 4), torch.ones(1, 2, 3, 4)
    attention.attend(config, q, kv, kv, None, torch.zeros(2) if config.sinks else None)
    assert config.keeps_scores is not bool(fused)
