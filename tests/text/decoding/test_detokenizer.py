from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gptcli.text.decoding.detokenizer import Detokenizer


@given(st.lists(st.binary(max_size=5), max_size=20))
def test_pieces_join_to_the_bytes_and_decode_to_the_text_of_the_whole(pieces: list[bytes]) -> None:
    detokenizer = Detokenizer()
    out = [detokenizer.push(piece) for piece in pieces] + [detokenizer.flush()]
    assert b"".join(out) == b"".join(pieces)
    decoded = "".join(piece.decode("utf-8", "replace") for piece in out)
    assert decoded == b"".join(pieces).decode("utf-8", "replace")


@given(st.text(max_size=20))
def test_text_that_comes_a_byte_at_a_time_never_shows_half_a_character(text: str) -> None:
    detokenizer = Detokenizer()
    out = [detokenizer.push(bytes([byte])) for byte in text.encode()]
    assert "".join(piece.decode("utf-8") for piece in out) == text
    assert detokenizer.flush() == b""
