"""Recipes by our parameters' names: how families tell where each parameter comes from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from gptcli.checkpoint.recipes import Concat, Recipe, Take, sources
from gptcli.model.config import DecoderConfig, NormConfig

Transform = Callable[[Recipe], Recipe]


def unchanged(recipe: Recipe) -> Recipe:
    """The recipe itself."""
    return recipe


# Prefixes of a decoder's tensor names: bare, as transformers' classes save them, and inside other models.
_ROOTS = (
    "",
    "model.",
    "model.model.",
    "language_model.model.",
    "model.language_model.",
    "language_model.",
    "model.text_model.",
    "backbone.",
)


def root_of(tensors: Collection[str]) -> str:
    """The prefix of a decoder's tensor names, found by its first layer; `model.` if there is none."""
    return next((root for root in _ROOTS if any(name.startswith(f"{root}layers.0.") for name in tensors)), "model.")


class Parameters(dict[str, Recipe]):
    """Recipes by our parameters' names."""

    def linear(
        self,
        ours: str,
        theirs: Sequence[str],
        bias: bool,
        rows: Sequence[Transform] = (),
        weight: Transform = unchanged,
    ) -> None:
        """Adds a linear layer that joins the rows of one or several modules of theirs.

        rows: for each module, applied to weight and bias. weight: applied to all weights, not to biases.
        """
        rows = rows or [unchanged] * len(theirs)
        for leaf in ("weight", "bias") if bias else ("weight",):
            each = [transform(Take(f"{name}.{leaf}")) for name, transform in zip(theirs, rows, strict=True)]
            self[f"{ours}.{leaf}"] = joined([weight(recipe) for recipe in each] if leaf == "weight" else each)

    def norm(self, ours: str, theirs: str | None, config: NormConfig, weight: Transform = unchanged) -> None:
        """Adds a norm's weight and bias, if there is such a norm and it has them."""
        if theirs is not None and config.weight:
            self[f"{ours}.weight"] = weight(Take(f"{theirs}.weight"))
        if theirs is not None and config.bias:
            self[f"{ours}.bias"] = Take(f"{theirs}.bias")

    def head(self, theirs: str, config: DecoderConfig, tensors: Collection[str]) -> DecoderConfig:
        """Adds the output head; returns the config, with `tied_head` as the tensors are.

        A head in the checkpoint is used even if the config ties it. One with a bias is never tied. A tied checkpoint
        may have the head only, without the embedding.
        """
        theirs = next((f"{root}{theirs}" for root in _ROOTS if f"{root}{theirs}.weight" in tensors), theirs)
        in_checkpoint = not config.tied_head or f"{theirs}.weight" in tensors
        if config.tied_head and in_checkpoint and not set(sources(self["embed.weight"])) <= set(tensors):
            self["embed.weight"] = Take(f"{theirs}.weight")
            in_checkpoint = False
        tied = not in_checkpoint and not config.head_bias
        if not tied:
            self.linear("head", [theirs], config.head_bias)
            if not in_checkpoint:
                self["head.weight"] = self["embed.weight"]
        return replace(config, tied_head=tied)


def joined(recipes: Sequence[Recipe]) -> Recipe:
    """A single recipe as it is, several along their rows."""
    return recipes[0] if len(recipes) == 1 else Concat(tuple(recipes))
