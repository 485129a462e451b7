"""A kept tokenizer makes what the whole one makes, of any text, and is used only while its files are unchanged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import BrokenTokenizer, UsageError
from gptcli.runtime.fast_start.snapshots import forget_snapshots
from gptcli.snapshot_format import models_with_snapshots
from gptcli.text.fast_start import tokenizer_snapshots
from gptcli.text.fast_start.partial_tokenizer import PartialTokenizer
from gptcli.text.tokenizer import Tokenizer
from tests.text.tokenizer_kinds import KINDS, made, texts

BPE = ("gpt2", "roberta", "llama3", "qwen2", "o200k", "llama2", "metaspace", "greedy")


def save(kind: str, path: Path) -> Path:
    library, _ = made(kind)
    path.mkdir(exist_ok=True)
    library.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "unheard_of": [1]}))
    return path


def kept(path: Path) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer opened whole, and opened from its snapshot."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_snapshots, "_FEWEST_PIECES", 0)
        whole = Tokenizer.open(path)
        whole.keep()
    return whole, Tokenizer.open(path)


def is_partial(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer.library, PartialTokenizer)


@cache
def both(kind: str) -> tuple[Tokenizer, Tokenizer]:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(Path(folder) / "cache"))
        whole, part = kept(save(kind, Path(folder) / kind))
    assert is_partial(part) and not is_partial(whole)
    for library in (part.library, part.control_tokens.renamed_backend.library):
        assert isinstance(library, PartialTokenizer)
        library._work = -(1 << 60)  # never takes the whole vocabulary
    return whole, part


@pytest.mark.parametrize("kind", BPE)
@given(text=texts(8), special=st.booleans(), add_special=st.booleans())
def test_the_pieces_in_a_text_make_the_tokens_of_all_pieces(
    kind: str, text: str, special: bool, add_special: bool
) -> None:
    def encoded(tokenizer: Tokenizer) -> object:
        try:
            encoding = tokenizer.backend_for(text, special=special).encode(text, add_special)
        except BrokenTokenizer as error:
            return error.message
        return encoding.ids, encoding.offsets, encoding.special_tokens_mask

    whole, part = both(kind)
    assert encoded(part) == encoded(whole)
    assert isinstance(part.library, PartialTokenizer) and not part.library._is_whole


@pytest.mark.parametrize("kind", BPE)
def test_a_kept_tokenizer_tells_what_the_whole_one_tells(kind: str, tmp_path: Path) -> None:
    whole, part = kept(save(kind, tmp_path / kind))
    assert part.size == whole.size
    for id in range(whole.size + 2):
        for tell in (Tokenizer.piece, Tokenizer.token_bytes, Tokenizer.surface, Tokenizer.is_control):
            assert tell(part, id) == tell(whole, id)
    for name in ("settings", "notes", "unread", "named_tokens", "stop_ids", "unknown_id", "surroundings"):
        assert getattr(part, name) == getattr(whole, name)
    assert all(
        part.library.token_to_id(part.piece(id)) == whole.library.token_to_id(part.piece(id)) for id in range(90)
    )
    assert part.difference(whole) is None
    assert isinstance(part.library, PartialTokenizer) and not part.library._is_whole
    assert part.library.to_str() == whole.library.to_str()


def test_a_long_text_takes_the_whole_vocabulary(tmp_path: Path) -> None:
    whole, part = kept(save("llama3", tmp_path / "model"))
    text = "the clockmaker had 3 clocks " * 50
    assert part.encode(text) == whole.encode(text)
    assert isinstance(part.library, PartialTokenizer) and part.library._is_whole
    assert part.encode("a clock") == whole.encode("a clock")


def snapshot_path() -> Path:
    [path] = (Path(os.environ["XDG_CACHE_HOME"]) / "gptcli" / "prepared").glob("*.tokenizer")
    return path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "settings": lambda model: (model / "tokenizer_config.json").write_text("{}"),
    "added tokens": lambda model: (model / "added_tokens.json").write_text("{}"),
    "a damaged piece": lambda model: flip(snapshot_path(), -1),
    "a damaged header": lambda model: flip(snapshot_path(), 60),
    "cut short": lambda model: os.truncate(snapshot_path(), 20),
    "others may write": lambda model: snapshot_path().chmod(0o666),
    "switched off": lambda model: os.environ.update(GPTCLI_PREPARED="off"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_tokenizer_is_not_used_after_anything_has_changed(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTCLI_PREPARED", "on")
    model = save("llama3", tmp_path / "model")
    assert is_partial(kept(model)[1])
    CHANGES[change](model)
    tokenizer = Tokenizer.open(model)
    assert not is_partial(tokenizer)
    assert tokenizer.encode("In a small town") == made("llama3")[1].encode("In a small town")


def test_a_switch_that_is_neither_on_nor_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_PREPARED", "no")
    with pytest.raises(UsageError, match="GPTCLI_PREPARED is on or off, not no"):
        Tokenizer.open(save("llama3", tmp_path / "model"))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(BPE)))
def test_only_bpe_is_kept(kind: str, tmp_path: Path) -> None:
    assert not is_partial(kept(save(kind, tmp_path / kind))[1])


def test_a_tokenizer_that_is_not_trusted_is_not_kept(tmp_path: Path) -> None:
    path = save("llama3", tmp_path / "model")
    state = json.loads((path / "tokenizer.json").read_text())
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(a+)+b"}
    (path / "tokenizer.json").write_text(json.dumps(state))
    assert not is_partial(kept(path)[1])


def test_kept_tokenizers_are_listed_with_their_models_and_removed_with_them(tmp_path: Path) -> None:
    models = [save("llama3", tmp_path / name) for name in ("one", "two")]
    assert all(is_partial(kept(model)[1]) for model in models)
    assert sorted(models_with_snapshots(tokenizer_snapshots.TOKENIZERS).values()) == models
    forget_snapshots(models[0])
    assert [is_partial(Tokenizer.open(model)) for model in models] == [False, True]


def test_a_small_vocabulary_is_not_kept(tmp_path: Path) -> None:
    path = save("llama3", tmp_path / "model")
    Tokenizer.open(path).keep()
    assert not is_partial(Tokenizer.open(path))
