"""Finds a model by name or path, and fetches the default one where it is missing."""

from __future__ import annotations

from pathlib import Path

from gptcli.models.catalog import DEFAULT_MODEL, FetchProgress, find, missing


def locate(name: str, *, offline: bool = False, on_progress: FetchProgress | None = None) -> Path:
    """The directory of a model; the default model is fetched where it is missing, unless `offline`.

    Raises ModelNotFound, with a way to get the model.
    """
    if model := find(name):
        return model.path
    if name != DEFAULT_MODEL or offline:
        raise missing(name)
    from gptcli.models.install import first_come
    from gptcli.models.pull import pull_default

    # Two ends of a pipe may both be the first to want it: the second waits for what the first fetches.
    with first_come():
        model = find(name)
        return model.path if model else pull_default(on_progress or (lambda what, done, total: None))
