"""Losses and gradients beside transformers'. GPTCLI_NIGHTLY=1 runs every family."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import WeightPlan, load_decoder
from gptcli.checkpoint.recipes import PlusOne, sources
from gptcli.checkpoint.weights.invert_recipe import is_reversible, tensors_of
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.model.decoder import Decoder
from gptcli.quant.affine import quantize_affine
from gptcli.quant.packed import PackedLinear
from gptcli.training.loss import add_gradients, loss_of
from tests.parity.reference import Reference
from tests.parity.test_families import ROW
from tests.parity.test_vision import CASES, saved

QUICK = (
    "llama", "gpt2", "gpt_neox", "gptj", "gemma2", "qwen3", "mixtral", "gpt_oss", "phi3", "falcon", "lfm2", "mamba2",
    "qwen3_5", "deepseek_v3", "apertus", "text of mistral3",
)  # fmt: skip
MODELS: dict[str, Callable[[Path], Reference]] = {
    **{title: row.write for title, row in ROW.items()},
    **{f"text of {case}": partial(saved, case=case) for case in CASES},
}
TOKENS = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(2))
LEARNED = torch.rand(2, 24, generator=torch.Generator().manual_seed(3)) < 0.7


def trainable(path: Path) -> tuple[ModelFolder, Decoder]:
    folder = ModelFolder.open(path)
    decoder = load_decoder(folder, WeightPlan(torch.device("cpu"), torch.float32, "dense"))
    return folder, decoder.requires_grad_()


def their_loss(reference: Reference) -> Tensor:
    labels = TOKENS.masked_fill(~LEARNED, -100)
    loss: Tensor = reference.model(TOKENS, labels=labels).loss
    return loss


def their_gradients(reference: Reference, path: Path) -> dict[str, Tensor]:
    """The gradients by the checkpoint's names of tensors, which only `save_pretrained` knows."""
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    reference.model.save_pretrained(path)
    named = load_file(path / "model.safetensors")
    named |= {name.replace(".blocks.", ".layers."): each for name, each in named.items()}  # as test_vision's `saved`
    return named | {f"language_model.{name}": each for name, each in named.items()}  # Llama 4's text part alone


@pytest.mark.parametrize("title", [title for title in MODELS if title in QUICK or "GPTCLI_NIGHTLY" in os.environ])
def test_loss_and_every_gradient_are_the_references(title: str, tmp_path: Path) -> None:
    reference = MODELS[title](tmp_path / "model")
    constants = {name.rpartition(".")[2] for name, _ in reference.model.named_buffers()}
    loss = their_loss(reference)
    loss.backward()
    folder, decoder = trainable(tmp_path / "model")
    total = int(LEARNED[:, 1:].sum())
    ours = add_gradients(decoder, TOKENS, LEARNED, total) / total
    assert abs(ours - loss.detach()) < 1e-5
    assert torch.equal(loss_of(decoder, TOKENS, LEARNED) / total, ours)
    theirs = their_gradients(reference, tmp_path / "gradients")
    largest = max(1.0, *(gradient.abs().max() for gradient in theirs.values()))
    compared = 0
    with TensorSource(folder) as source:
        for name, recipe in folder.architecture.parameters.items():
            path, _, leaf = name.rpartition(".")
            if leaf in getattr(decoder.get_submodule(path), "CONSTANTS", ()):
                assert {tensor.rpartition(".")[2] for tensor in sources(recipe)} <= constants
                continue
            gradient = decoder.get_parameter(name).grad
            if gradient is None or not is_reversible(recipe):
                continue
            gradient = gradient + isinstance(recipe, PlusOne)
            for tensor, part in tensors_of(recipe, gradient, source.stored, theirs.__getitem__).items():
                assert (part - theirs[tensor]).abs().max() < 1e-4 * largest, tensor
                compared += 1
    assert compared > 10


def test_gradients_flow_through_packed_weights_and_not_to_them() -> None:
    weight = quantize_affine(torch.randn(48, 64, generator=torch.Generator().manual_seed(4)), 4)
    packed, dense = PackedLinear(weight, None), weight.expanded()
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    ours, theirs = packed(x), x @ dense.mT
    assert torch.allclose(ours, theirs, atol=1e-5)
    upstream = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(6))
    (gradient,) = torch.autograd.grad(ours, x, upstream)
    assert torch.allclose(gradient, upstream @ dense, atol=1e-5)
