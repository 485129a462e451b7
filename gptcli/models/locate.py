"""Finds a model by name or path, and fetches the default one if it is missing."""

from __future__ import annotations

from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files import ADAPTER_CONFIG, is_there, read_json
from gptcli.models.catalog import DEFAULT_MODEL, FetchProgress, find, missing


def locate(name: str, *, offline: bool = False, on_progress: FetchProgress | None = None) -> Path:
    """The directory of a model. A missing default model is fetched, unless `offline`.

    Raises ModelNotFound, with a way to get the model.
    """
    if model := find(name):
        return model.path
    if name != DEFAULT_MODEL or offline:
        raise missing(name)
    from gptcli.models.install import one_at_a_time
    from gptcli.models.pull import pull_default

    # Both ends of a pipe may fetch it at once: the second process waits for the first.
    with one_at_a_time():
        model = find(name)
        return model.path if model else pull_default(on_progress or (lambda what, done, total: None))


def base_of_adapter(path: Path) -> Path | None:
    """The base model of a LoRA adapter's directory; None for another directory, or if the model is not here."""
    if not is_there(path / ADAPTER_CONFIG) or is_there(path / "config.json"):
        return None
    try:
        config = read_json(path / ADAPTER_CONFIG)
    except GptcliError:  # reported when it is opened
        return None
    base = config.get("base_model_name_or_path")
    model = find(base) if isinstance(base, str) and config.get("peft_type") == "LORA" else None
    return None if model is None else model.path
