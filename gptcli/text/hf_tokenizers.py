"""The Hugging Face tokenizers library: opening, encoding and describing, with BrokenTokenizer for whatever fails.

Knows nothing of files or processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import tokenizers
from tokenizers import AddedToken
from tokenizers.decoders import Decoder
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from gptcli.errors import BrokenTokenizer

if TYPE_CHECKING:
    from gptcli.text.fast_open.partial_tokenizer import PartialTokenizer

Library: TypeAlias = "tokenizers.Tokenizer | PartialTokenizer"
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Encoded:
    """The fields of an encoding that are used, where it comes out of another process."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]


def _raises_broken_tokenizer(call: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    @wraps(call)
    def guarded(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        try:
            return call(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit):
            raise
        except MemoryError:
            raise BrokenTokenizer("it takes too much memory") from None
        except BaseException as error:  # the library raises bare Exception, and PanicException, which is not even one
            raise BrokenTokenizer(str(error)[:200] or type(error).__name__) from None

    return guarded


@_raises_broken_tokenizer
def parse(data: bytes) -> tokenizers.Tokenizer:
    """A tokenizer from the bytes of a tokenizer.json. Raises BrokenTokenizer, whose message is the reason alone."""
    library = tokenizers.Tokenizer.from_buffer(data)
    # Training, or another program, may have left these on.
    library.no_truncation()
    library.no_padding()
    if getattr(library.model, "dropout", None):
        library.model.dropout = None
    return library


@_raises_broken_tokenizer
def built(state: dict[str, Any]) -> tokenizers.Tokenizer:
    """As `parse`, from the contents of a tokenizer.json. BPE without JSON in between, which takes most of the time."""
    model = state["model"]
    if model["type"] != "BPE" or any(isinstance(merge, str) for merge in model["merges"]):
        return parse(json.dumps(state, ensure_ascii=False).encode())
    left_out = ("type", "merges", "dropout")
    options = {name: value for name, value in model.items() if name not in left_out and value is not None}
    library = tokenizers.Tokenizer(BPE(**options, merges=[*map(tuple, model["merges"])]))
    others = parse(
        json.dumps(state | {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}).encode()
    )
    for component in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(others, component)) is not None:
            setattr(library, component, value)
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    library.add_tokens([AddedToken(**{name: token[name] for name in names}) for token in state.get("added_tokens", ())])
    return library


@_raises_broken_tokenizer
def encode(library: Library, text: str, add_special: bool) -> tokenizers.Encoding:
    """The encoding of a text. Raises BrokenTokenizer as `parse` does."""
    return library.encode(text, add_special_tokens=add_special)


@_raises_broken_tokenizer
def encode_batch(library: Library, texts: Sequence[str], offsets: bool) -> list[tokenizers.Encoding]:
    """The encodings of texts, in parallel, with nothing added around them. Raises BrokenTokenizer as `parse` does."""
    encode_all = library.encode_batch if offsets else library.encode_batch_fast
    return list(encode_all(list(texts), add_special_tokens=False))


@_raises_broken_tokenizer
def decode_batch(library: Library, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The text of each sequence of ids, control tokens included. Raises BrokenTokenizer as `parse` does."""
    return [library.decode(list(ids), skip_special_tokens=False) for ids in sequences]


def decoder_name(decoder: Decoder | None) -> str:
    """The types of a decoder's steps, such as `ByteFallback+Fuse`."""
    return "+".join(step["type"] for step in steps(description(decoder), "decoders"))


def description(component: Normalizer | PreTokenizer | Decoder | None) -> dict[str, Any] | None:
    """What tokenizer.json says of a component of a tokenizer."""
    if component is None:
        return None
    described: dict[str, Any] = json.loads(component.__getstate__())
    return described


def steps(described: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """The steps of a described component in order. members: the field in which a sequence lists its own."""
    if described is None:
        return []
    if described.get("type") != "Sequence":
        return [described]
    return [step for member in described[members] for step in steps(member, members)]
