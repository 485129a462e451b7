"""Chooses the files of a model in a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from gptcli.errors import ModelNotFound, UsageError
from gptcli.files import ADAPTER_CONFIG, MANIFEST, called_gguf
from gptcli.models.stores import VISION_MODULE

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PART = re.compile(r"-(\d{5}-of-\d{5})(?=\.(?:gguf|safetensors)$)", re.IGNORECASE)
_BESIDE = (".json", ".jinja", "merges.txt", "tokenizer.model", "LICENSE", "LICENSE.txt", "LICENSE.md")
Sizes = Mapping[str, int]


def chosen_files(repository: str, sizes: Sizes, pattern: str | None) -> dict[str, int]:
    """The files of one model and their sizes. sizes: of all files of a repository.

    pattern: of the weights' names; None: the weights that transformers would read. Raises UsageError, which lists the
    choices, and ModelNotFound.
    """
    top = {name: size for name, size in sizes.items() if "/" not in name and name != MANIFEST}
    in_folders = [name for name in sizes if called_gguf(name) and not {"", ".", ".."} & {*name.split("/")}]
    variants = _variants({*top, *in_folders})
    beside = {name: size for name, size in top.items() if name.endswith(_BESIDE)}
    if pattern is not None:
        matching = [name for name, files in variants.items() if any(fnmatchcase(file, pattern) for file in files)]
        if len(matching) != 1:
            found = f"{len(matching)} match {pattern!r}" if matching else f"none matches {pattern!r}"
            raise _choice(repository, found, {name: variants[name] for name in matching or variants}, sizes)
        files = variants[matching[0]]
        if files[0].endswith(".safetensors") and len(files) > 1 and not _SHARD.fullmatch(files[0]):
            raise UsageError(f"cannot fetch from the hub: {repository}: {matching[0]} in parts of these names")
        return {name: sizes[name] for name in files} | ({} if called_gguf(files[0]) else beside)
    usual = ["model.safetensors"] if "model.safetensors" in top else [*filter(_SHARD.fullmatch, top)]
    if "config.json" in top and usual:
        return beside | {name: top[name] for name in usual}
    if "config.json" not in top and ADAPTER_CONFIG in top:
        raise ModelNotFound(
            f"cannot fetch from the hub: {repository}: an adapter, not a whole model",
            hint=f"run `hf download {repository}`; `gptcli models show {repository}` then says how to merge it",
        )
    if variants:
        raise _choice(repository, "several are there", variants, sizes)
    raise ModelNotFound(f"cannot fetch from the hub: {repository}: it has no config.json with safetensors weights")


def is_weights(name: str) -> bool:
    """Whether a file is one of weights, by its name."""
    return name.endswith(".safetensors") or called_gguf(name)


def _variants(names: Iterable[str]) -> dict[str, list[str]]:
    """Files of weights by their name without a part's number; by a pattern if a whole file has that name.

    Vision modules, which lie beside their models, do not count.
    """
    variants: dict[str, list[str]] = {}
    names = sorted(names)
    for name in names:
        if is_weights(name) and not VISION_MODULE.search(name):
            whole = _PART.sub("", name)
            variants.setdefault(_PART.sub("-*", name) if whole != name and whole in names else whole, []).append(name)
    return variants


def _choice(repository: str, found: str, variants: Mapping[str, list[str]], sizes: Sizes) -> UsageError:
    listed = ", ".join(f"{name} ({_size(sum(sizes[file] for file in files))})" for name, files in variants.items())
    return UsageError(
        f"which weights of {repository}? {found}: {listed or 'there are none'}",
        hint="choose with --file PATTERN, such as --file '*Q4_K_M*'",
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
