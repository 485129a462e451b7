from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gptcli.model.config import MlpConfig, MoeConfig
from gptcli.model.mlp import Experts, Moe


@pytest.mark.parametrize("tokens", [1, 3])
def test_only_experts_that_a_token_chose_are_run(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    moe = Moe(MoeConfig(expert=MlpConfig(width=8), experts=16, top_k=2, renormalize=True), hidden_size=8)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, tokens, 8)
    chosen = set(moe.router(x).topk(2).indices.flatten().tolist())
    run: list[int] = []
    forward = Experts.forward

    def recorded(self: Experts, expert: int, x: Tensor) -> Tensor:
        run.append(expert)
        return forward(self, expert, x)

    monkeypatch.setattr(Experts, "forward", recorded)
    moe(x)
    assert sorted(run) == sorted([*chosen, *chosen])  # up and down, once each
    assert len(chosen) <= 2 * tokens
