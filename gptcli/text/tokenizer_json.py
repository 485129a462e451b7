"""Makes the library's tokenizer of a tokenizer.json. Every failure is a BrokenTokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import tokenizers
from tokenizers import AddedToken
from tokenizers.models import BPE

from gptcli.errors import BrokenTokenizer

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def raises_broken_tokenizer(call: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """The call, with BrokenTokenizer in place of any error of the library."""

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


@raises_broken_tokenizer
def parse(data: bytes) -> tokenizers.Tokenizer:
    """A tokenizer from the bytes of a tokenizer.json. Raises BrokenTokenizer, whose message is the reason alone."""
    library = tokenizers.Tokenizer.from_buffer(data)
    # Training may have left truncation, padding and dropout on.
    library.no_truncation()
    library.no_padding()
    if getattr(library.model, "dropout", None):
        library.model.dropout = None
    return library


@raises_broken_tokenizer
def from_state(state: dict[str, Any]) -> tokenizers.Tokenizer:
    """As `parse`, from the parsed contents. Makes BPE without JSON in between, which takes most of the time."""
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
