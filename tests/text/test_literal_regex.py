from __future__ import annotations

import re
from random import Random

import pytest

from gptcli.text.literal_regex import any_of


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_what_trying_one_text_after_the_other_finds_the_longest_first(seed: int) -> None:
    rng = Random(seed)
    letters = rng.choice(["ab", "<|>-]^[\\", "".join(map(chr, range(33, 127)))])
    texts = sorted({"".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(rng.choice([1, 5, 300]))})
    one_by_one = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
    for _ in range(50):
        place = "".join(rng.choices([*texts, *letters], k=20))
        assert re.findall(any_of(texts), place) == one_by_one.findall(place)


def test_thousands_of_texts_are_found_as_fast_as_one() -> None:
    texts = [f"<{chr(0x4E00 + index)}>" for index in range(20_000)]
    place = "<\u4e01" * 500_000  # a minute, if each were tried
    assert re.search(any_of(texts), place) is None
