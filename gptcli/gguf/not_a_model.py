"""Errors for GGUF files that are not a language model: what each is, and a hint."""

from __future__ import annotations

import re

from gptcli.errors import InvalidModel
from gptcli.gguf.reader import GgufFile

_OTHERS = {
    "mmproj": ("the part of a model that reads images or sounds", "give the model's own file, which is beside it"),
    "adapter": (
        "an adapter, not a whole model",
        "merge it into its model with llama.cpp: llama-export-lora -m MODEL.gguf --lora ADAPTER.gguf -o MERGED.gguf",
    ),
    "imatrix": ("an importance matrix, from which llama.cpp quantizes a model", "give the model's own file"),
    "controlvector": ("a control vector, not a model", "give the model's own file"),
}
_ARCHITECTURES = {"clip": "mmproj", "controlvector": "controlvector"}
_OF_OLLAMA = ("gptoss", "mllama")  # Ollama's own forms of models, which no other program reads
_NO_TEXT = re.compile(r".*bert.*|t5encoder|gemma-embedding|llama-embed|whisper|wavtokenizer.*|pockettts")


def refuse_other_files(file: GgufFile) -> None:
    """Raises InvalidModel for a file that is known to hold something else, or no weights at all."""
    name = file.optional("general.architecture", str) or ""
    kind = _ARCHITECTURES.get(name, file.any("general.type"))
    if isinstance(kind, str) and kind in _OTHERS:
        what, hint = _OTHERS[kind]
    elif _NO_TEXT.fullmatch(name):
        what, hint = f"a model of architecture {name!r}, which writes no text", "give a language model's file"
    elif name in _OF_OLLAMA:
        what, hint = f"architecture {name!r} is a form of Ollama's own", "get the model as llama.cpp writes it"
    elif not file.tensors:
        what, hint = "a vocabulary without a model: it has no tensors", "`gptcli tokenize` takes the model's own file"
    else:
        return
    raise InvalidModel(f"cannot run: {file.path}: {what}", hint)
