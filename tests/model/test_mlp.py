from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gptcli.model.config import MlpConfig, MoeConfig
from gptcli.model.mlp import Experts, Moe
from gptcli.quant.affine import quantize_affine
from gptcli.quant.packed import PackedExperts
from tests.cuda.recorder import Recorder


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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("tokens", "copied"), [(1, True), (2, True), (3, False), (9, False)])
def test_experts_side_by_side_are_those_that_a_token_chose(tokens: int, copied: bool, packed: bool, bias: bool) -> None:
    torch.manual_seed(0)
    expert = MlpConfig(width=32, bias=bias)
    moe = Moe(MoeConfig(expert=expert, experts=16, top_k=2, renormalize=True, router_bias=bias), hidden_size=32)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    if packed:
        moe.up, moe.down = (PackedExperts(quantize_affine(each.weight, 8), each.bias) for each in (moe.up, moe.down))
    x = torch.randn(tokens, 32)
    shares, chosen = moe.router(x).softmax(-1).topk(2)
    with Recorder() as seen, torch.inference_mode():
        got = moe._side_by_side(x, shares, chosen)
    torch.testing.assert_close(got, moe._one_by_one(x, shares, chosen), rtol=1e-4, atol=1e-4)
    names = [name for name, _ in seen.described()]
    assert not any(name.split(".")[1] in ("_unique2", "nonzero", "_local_scalar_dense", "item") for name in names)
    weights = 2 * 16 * 2 * 32 * 32  # of all experts in bytes, if they were bytes
    largest = max(out.numel() for _, _, _, out in seen.calls if isinstance(out, Tensor))
    assert (largest < weights // 4) == copied or packed
