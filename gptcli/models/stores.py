"""Finds GGUF files of other programs: Ollama, LM Studio, llama.cpp, Hugging Face. Reads them in place, never writes.

Ollama keeps parameters, a system message and a Go template beside a model. See `StoreSettings`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from gptcli.environment import switched_off
from gptcli.errors import BrokenCheckpoint, GptcliError, UnsupportedArchitecture
from gptcli.files import called_gguf, open_regular, read_json
from gptcli.models.hub_cache import gguf_files, hub_cache, hub_snapshot, hub_snapshots

HUB = "huggingface"
_OLLAMA_HOST, _OLLAMA_OWNER = "registry.ollama.ai", "library"  # Ollama's names leave them out
_OLLAMA_LAYER = "application/vnd.ollama.image."
# Ollama's parameters that are settings of the same names here, and those that change no text.
_OLLAMA_SETTINGS = frozenset(
    "temperature top_k top_p min_p typical_p repeat_penalty repeat_last_n presence_penalty frequency_penalty".split()
)
_OLLAMA_WITHOUT_EFFECT = frozenset(
    """
    num_gpu main_gpu num_thread num_batch num_keep low_vram numa f16_kv logits_all vocab_only use_mmap use_mlock
    """.split()
)
_LONGEST_SYSTEM = 1 << 20  # bytes
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
VISION_MODULE = re.compile(r"(^|[-_./])mmproj", re.IGNORECASE)  # such files lie beside their models


def stored_models() -> Iterator[tuple[str, Path]]:
    """The name and file of each model; names begin with the store's. Nothing with GPTCLI_STORES=off."""
    if switched_off("GPTCLI_STORES"):
        return
    hub = _hub(hub_cache())
    for store, models in (("ollama", _ollama()), ("lmstudio", _lm_studio()), ("llama.cpp", _llama_cpp()), (HUB, hub)):
        for name, file in models:
            yield f"{store}:{name}", file


def find_stored(name: str) -> Path | None:
    """The file of a model by its name, such as `ollama:qwen3:0.6b`."""
    if not name.startswith(("ollama:", "lmstudio:", "llama.cpp:", f"{HUB}:")):
        return None
    return next((file for known, file in stored_models() if known == name or _is_ollamas(known, name)), None)


def _is_ollamas(known: str, name: str) -> bool:
    """Whether a name is Ollama's for a model: in any case, with or without host, owner and the tag `latest`."""
    asked = name.lower().removeprefix("ollama:").removeprefix(f"{_OLLAMA_HOST}/").removeprefix(f"{_OLLAMA_OWNER}/")
    return name.startswith("ollama:") and known.lower() in (f"ollama:{asked}", f"ollama:{asked}:latest")


def only_stored(name: str) -> Path | None:
    """The one GGUF file of OWNER/NAME in the Hugging Face cache; None if there are several."""
    snapshot = None if switched_off("GPTCLI_STORES") else hub_snapshot(hub_cache(), name, gguf_files)
    files = [file for _, file in _files(snapshot, gguf_files(snapshot))] if snapshot else []
    return files[0] if len(files) == 1 else None


def unreadable_stores() -> list[str]:
    """Notes of directories that this user may not read, such as another user's Ollama."""
    roots = [] if switched_off("GPTCLI_STORES") else _ollama_roots()
    return [f"cannot read {root}: Permission denied" for root in roots if not _readable(root)]


@dataclass(frozen=True)
class StoreSettings:
    """A store's settings of a model; a user's own choices precede them.

    sampling: settings by SamplingConfig's names. stop: texts that end a generation. context: in tokens. go_template:
    whether there is a chat template that is not Jinja. not_done: names of unsupported parameters.
    """

    sampling: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    context: int | None = None
    system: str | None = None
    go_template: bool = False
    not_done: tuple[str, ...] = ()


def store_settings(name: str) -> StoreSettings:
    """The settings of a model's store; empty for a name without a store.

    Raises BrokenCheckpoint or InputError for unreadable settings, UnsupportedArchitecture for an adapter.
    """
    if not name.startswith("ollama:") or switched_off("GPTCLI_STORES"):
        return StoreSettings()
    for known, layers in _ollama_models():
        if _is_ollamas(f"ollama:{known}", name):
            if "adapter" in layers:
                raise UnsupportedArchitecture(f"cannot run: {name}: it has an adapter, which is not applied")
            parameters = read_json(layers["params"]) if "params" in layers else {}
            settings = _settings(f"{name}: {layers.get('params')}", parameters)
            return StoreSettings(
                **settings,
                system=_text(layers["system"]) if "system" in layers else None,
                go_template="template" in layers,
            )
    return StoreSettings()


def _settings(where: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as fields of StoreSettings. Raises BrokenCheckpoint for bad values."""
    stop = parameters.get("stop") or []
    context = parameters.get("num_ctx")
    sampling = {name: value for name, value in parameters.items() if name in _OLLAMA_SETTINGS}
    if context is not None and (type(context) is not int or context < 1):
        raise BrokenCheckpoint(f"{where}: num_ctx must be a number of tokens")
    if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
        raise BrokenCheckpoint(f"{where}: stop must be a list of texts")
    if any(type(value) not in (int, float) for value in sampling.values()):
        raise BrokenCheckpoint(f"{where}: these must be numbers: {', '.join(sampling)}")
    done = _OLLAMA_SETTINGS | _OLLAMA_WITHOUT_EFFECT | {"stop", "num_ctx"}
    not_done = tuple(name for name in parameters if name not in done)
    return {"sampling": sampling, "stop": tuple(filter(None, stop)), "context": context, "not_done": not_done}


def _text(blob: Path) -> str:
    """The text of a blob. Raises BrokenCheckpoint if it is too long or not UTF-8, and InputError."""
    with open_regular(blob) as file:
        data = file.read(_LONGEST_SYSTEM + 1)
    try:
        if len(data) <= _LONGEST_SYSTEM:
            return data.decode()
    except UnicodeDecodeError:
        raise BrokenCheckpoint(f"cannot read: {blob}: not UTF-8") from None
    raise BrokenCheckpoint(f"cannot read: {blob}: a system message of more than {_LONGEST_SYSTEM} bytes")


def _ollama() -> Iterator[tuple[str, Path]]:
    for name, layers in _ollama_models():
        if "model" in layers:
            yield name, layers["model"]


def _ollama_models() -> Iterator[tuple[str, dict[str, Path]]]:
    """Each model's name, and its blobs by kind; a manifest is `manifests/HOST/OWNER/MODEL/TAG`."""
    for root in filter(_readable, _ollama_roots()):
        for manifest in sorted(root.glob("manifests/*/*/*/*")):
            host, owner, model, tag = manifest.parts[-4:]
            prefix = "" if host == _OLLAMA_HOST else f"{host}/"
            prefix += "" if not prefix and owner == _OLLAMA_OWNER else f"{owner}/"
            yield f"{prefix}{model}:{tag}", _blobs(root, manifest)


def _ollama_roots() -> list[Path]:
    """The user's directory and the service's, which other users may be unable to read; or OLLAMA_MODELS."""
    chosen = os.environ.get("OLLAMA_MODELS")
    return [Path(chosen)] if chosen else [_home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]


def _readable(root: Path) -> bool:
    """Whether this user may read a directory; true, too, if it is missing."""
    try:
        with os.scandir(root):
            return True
    except OSError as error:
        return not isinstance(error, PermissionError)


def _blobs(root: Path, manifest: Path) -> dict[str, Path]:
    """The existing files that a manifest names, by kind; none if it cannot be read."""
    try:
        layers = read_json(manifest).get("layers")
    except GptcliError:
        return {}
    blobs: dict[str, Path] = {}
    for layer in layers if isinstance(layers, list) else []:
        match layer:
            case {"mediaType": str(kind), "digest": str(digest)} if hexadecimal := _DIGEST.fullmatch(digest):
                blob = root / "blobs" / f"sha256-{hexadecimal[1]}"
                if kind.startswith(_OLLAMA_LAYER) and os.path.isfile(blob):
                    blobs.setdefault(kind.removeprefix(_OLLAMA_LAYER), blob)
    return blobs


def _lm_studio() -> Iterator[tuple[str, Path]]:
    homes = [*_lm_studio_pointer(), _home() / ".lmstudio", _cache() / "lm-studio"]
    for root in dict.fromkeys([*_downloads(homes), *(home / "models" for home in homes)]):
        yield from _files(root, root.glob("*/*/*"))


def _lm_studio_pointer() -> Iterator[Path]:
    """The directory that LM Studio was moved to, if its pointer names one."""
    with contextlib.suppress(GptcliError):
        yield from _directory(_text(_home() / ".lmstudio-home-pointer").strip())


def _downloads(homes: Iterable[Path]) -> Iterator[Path]:
    """The directories of models that LM Studio's settings name."""
    for home in homes:
        with contextlib.suppress(GptcliError):
            if isinstance(folder := read_json(home / "settings.json").get("downloadsFolder"), str):
                yield from _directory(folder)


def _directory(path: str) -> Iterator[Path]:
    """A directory, if it is one: settings may name what no path can be."""
    if os.path.isdir(path):
        yield Path(path)


def _llama_cpp() -> Iterator[tuple[str, Path]]:
    """llama.cpp once kept files by name, and now keeps repositories as Hugging Face's client does."""
    chosen = os.environ.get("LLAMA_CACHE")
    root = Path(chosen or platformdirs.user_cache_dir("llama.cpp", appauthor=False, opinion=False))
    yield from _files(root, root.glob("*"))
    yield from _hub(root)


def _hub(cache: Path) -> Iterator[tuple[str, Path]]:
    for model, snapshot in hub_snapshots(cache, gguf_files):
        yield from ((f"{model}/{name}", file) for name, file in _files(snapshot, gguf_files(snapshot)))


def _files(root: Path, files: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The name and file of each model below a directory; of a split one, the first part."""
    for file in sorted(files):
        name = file.relative_to(root).as_posix()
        if (
            called_gguf(name)
            and os.path.isfile(file)
            and not _LATER_PART.search(name)
            and not VISION_MODULE.search(name)
        ):
            yield name[: -len(".gguf")], file


def _home() -> Path:
    return Path(os.path.expanduser("~"))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
