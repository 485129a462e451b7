"""GGUF files that other programs keep: Ollama, LM Studio and llama.cpp. Read in place, never written or removed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from gptcli.environment import switched_off
from gptcli.errors import GptcliError
from gptcli.files import read_json

_OLLAMA_HOST, _OLLAMA_OWNER = "registry.ollama.ai", "library"  # which its names leave out
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_NO_MODEL = re.compile(r"(^|[-_./])mmproj", re.IGNORECASE)  # vision modules, which lie beside their models


def stored_models() -> Iterator[tuple[str, Path]]:
    """The name, which begins with the store's, and the file of each model. None with GPTCLI_STORES=off."""
    if switched_off("GPTCLI_STORES"):
        return
    for store, models in (("ollama", _ollama()), ("lmstudio", _lm_studio()), ("llama.cpp", _llama_cpp())):
        for name, file in models:
            yield f"{store}:{name}", file


def find_stored(name: str) -> Path | None:
    """The file of a model by its name, such as `ollama:qwen3:0.6b`. A tag that is left out is `latest`."""
    if not name.startswith(("ollama:", "lmstudio:", "llama.cpp:")):
        return None
    wanted = {name, f"{name}:latest"} if name.startswith("ollama:") else {name}
    return next((file for known, file in stored_models() if known in wanted), None)


def _ollama() -> Iterator[tuple[str, Path]]:
    """A manifest is `manifests/HOST/OWNER/MODEL/TAG`; it names blobs by their hashes."""
    chosen = os.environ.get("OLLAMA_MODELS")
    for root in [Path(chosen)] if chosen else [_home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]:
        for manifest in sorted(root.glob("manifests/*/*/*/*")):
            host, owner, model, tag = manifest.parts[-4:]
            if (blob := _blob(root, manifest)) is not None:
                prefix = "" if host == _OLLAMA_HOST else f"{host}/"
                prefix += "" if not prefix and owner == _OLLAMA_OWNER else f"{owner}/"
                yield f"{prefix}{model}:{tag}", blob


def _blob(root: Path, manifest: Path) -> Path | None:
    """The file with a model's weights, if its manifest can be read and the file is there."""
    try:
        layers = read_json(manifest).get("layers")
    except GptcliError:
        return None
    for layer in layers if isinstance(layers, list) else []:
        match layer:
            case {"mediaType": str(kind), "digest": str(digest)} if kind == _OLLAMA_MODEL:
                if (hexadecimal := _DIGEST.fullmatch(digest)) is not None:
                    blob = root / "blobs" / f"sha256-{hexadecimal[1]}"
                    return blob if blob.is_file() else None
    return None


def _lm_studio() -> Iterator[tuple[str, Path]]:
    for root in (_home() / ".lmstudio/models", _cache() / "lm-studio/models"):
        yield from _files(root, "*/*/*.gguf")


def _llama_cpp() -> Iterator[tuple[str, Path]]:
    chosen = os.environ.get("LLAMA_CACHE")
    yield from _files(Path(chosen) if chosen else _cache() / "llama.cpp", "*.gguf")


def _files(root: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Models by their paths below a directory; of a split one, the first part."""
    for file in sorted(root.glob(pattern)):
        name = file.relative_to(root).as_posix()
        if file.is_file() and not _LATER_PART.search(name) and not _NO_MODEL.search(name):
            yield name.removesuffix(".gguf"), file


def _home() -> Path:
    return Path(os.path.expanduser("~"))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
