from __future__ import annotations

import re
from random import Random

import pytest

from gptcli.text.literal_regex import regex_for_any


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_what_an_alternation_finds_with_the_longest_first(seed: int) -> None:
    rng = Random(seed)
    letters = rng.choice(["ab", "<|>-]^[\\", "".join(map(chr, range(33, 127)))])
    texts = sorted({"".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(rng.choice([1, 5, 300]))})
    one_by_one = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
    for _ in range(50):
        text = "".join(rng.choices([*texts, *letters], k=20))
        assert re.findall(regex_for_any(texts), text) == one_by_one.findall(text)


def test_thousands_of_literals_take_no_minutes() -> None:
    texts = [f"<{chr(0x4E00 + index)}>" for index in range(20_000)]
    text = "<\u4e01" * 500_000  # a minute, if each were tried
    assert re.search(regex_for_any(texts), text) is None
