from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gptcli.generation.stopping import StopMatcher

small = st.text(alphabet="ab€", max_size=30)
stops = st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3)


def feed(matcher: StopMatcher, pieces: list[bytes]) -> bytes:
    out = b""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.matched is not None:
            return out
    return out + matcher.flush()


def test_nothing_is_delayed_without_stop_texts() -> None:
    assert StopMatcher([]).push(b"all of it") == b"all of it"


def test_of_stop_texts_that_begin_together_the_longest_complete_one_wins() -> None:
    matcher = StopMatcher(["a", "ab"])
    assert matcher.push(b"xab") == b"x"
    assert matcher.matched == "ab"


@given(small, stops, st.data())
def test_the_text_ends_before_the_first_stop_text_however_it_is_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text.encode())), max_size=5)))
    encoded = text.encode()
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    first = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    matcher = StopMatcher(stops)
    assert feed(matcher, pieces) == text[:first].encode()
    assert (matcher.matched is not None) == any(stop in text for stop in stops)
