"""Makes mutants of a tiny model: `python -m tests.corpus.gen --seed S --count N --out DIR` writes them as directories.

The same seed makes the same mutants. `expected.json` says what is to come of each; `run.py` sees to it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.corpus import of_texts, of_tokenizers, of_weights
from tests.corpus.model_dir import Expected, ModelDir, Mutator

MUTATORS: list[Mutator] = [*of_weights.MUTATORS, *of_texts.MUTATORS, *of_tokenizers.MUTATORS]


@dataclass(frozen=True)
class Mutant:
    """A mutated model and what is expected of it. chat: whether it is asked for a chat, not for raw text."""

    name: str
    kind: str
    expected: Expected
    chat: bool
    model: ModelDir


def mutants(seed: int, count: int) -> Iterator[Mutant]:
    """So many mutants of a seed, every kind in turn."""
    for index in range(count):
        mutator = MUTATORS[index % len(MUTATORS)]
        kind = mutator.__name__
        model = ModelDir.base()
        expected = mutator(Random(f"{seed}/{index}/{kind}"), model)
        yield Mutant(f"{index:05}-{kind}", kind, expected, kind in of_tokenizers.IN_CHATS, model)


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
