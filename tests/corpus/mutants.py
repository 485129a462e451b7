"""Mutants of a tiny model: `python -m tests.corpus.mutants --seed S --count N --out DIR` writes them as directories.

The same seed makes the same mutants. `expected.json` says what must come of each; `run.py` checks it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.corpus import mutate_gguf, mutate_json, mutate_tokenizers, mutate_weights
from tests.corpus.model_dir import Expected, ModelDir, Mutator

_SINGLE: list[Mutator] = [*mutate_weights.MUTATORS, *mutate_json.MUTATORS, *mutate_tokenizers.MUTATORS]

# What a mutator raises where an earlier one has left it nothing to damage, or too deep a JSON.
_NOTHING_LEFT = (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError, struct.error)


def several(rng: Random, model: ModelDir) -> Expected:
    """Several faults; one that finds nothing left to damage is skipped."""
    for mutator in rng.choices(_SINGLE, k=rng.randint(2, 4)):
        with contextlib.suppress(*_NOTHING_LEFT):
            mutator(rng, model)
    return "any"


def packed(rng: Random, model: ModelDir) -> Expected:
    """A model in MLX's 4 bits, which a mutator of headers or JSON damages."""
    mutate_weights.pack(model)
    if rng.random() < 0.5:
        settings = model.json()["quantization"]
        settings[rng.choice(["bits", "group_size", "mode"])] = rng.choice([*mutate_json.WRONG, 4.0, 64.0, 3, 32, 128])
        model.change("config.json", quantization=settings)
    with contextlib.suppress(*_NOTHING_LEFT):
        rng.choice(mutate_weights.OF_HEADERS + mutate_json.MUTATORS)(rng, model)
    return "any"


MUTATORS: list[Mutator] = [*_SINGLE, several, packed, *mutate_gguf.MUTATORS]


@dataclass(frozen=True)
class Mutant:
    """A mutated model and what is expected of it. chat: whether it runs on a chat, not on raw text."""

    name: str
    kind: str
    expected: Expected
    chat: bool
    model: ModelDir


def mutants(seed: int, count: int, only: str = "") -> Iterator[Mutant]:
    """The first `count` mutants of a seed, the kinds in turn. only: how the names of kinds begin."""
    chosen = [mutator for mutator in MUTATORS if mutator.__name__.startswith(only)]
    for index in range(count):
        mutator = chosen[index % len(chosen)]
        kind = mutator.__name__
        model = ModelDir.base()
        expected = mutator(Random(f"{seed}/{index}/{kind}"), model) or "reject"
        yield Mutant(f"{index:05}-{kind}", kind, expected, kind in mutate_tokenizers.IN_CHATS, model)


def main() -> None:
    """Writes the mutants of a seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    expected = {}
    for mutant in mutants(given.seed, given.count):
        mutant.model.write(given.out / mutant.name)
        expected[mutant.name] = {"expected": mutant.expected, "chat": mutant.chat}
    (given.out / "expected.json").write_text(json.dumps(expected, indent=1))


if __name__ == "__main__":
    main()
