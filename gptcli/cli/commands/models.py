"""`gptcli models`: lists, shows, fetches, verifies and removes local models."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.generation_config import MODEL_SETTINGS
from gptcli.checkpoint.registry import FAMILIES
from gptcli.cli import options
from gptcli.cli.json_records import json_line
from gptcli.cli.model_checks import template_state, verification
from gptcli.cli.model_facts import sampling_facts, stop_sources, weight_bytes
from gptcli.cli.parsing.metavars import Command, Group
from gptcli.cli.terminal.columns import hanging, terminal_columns
from gptcli.cli.terminal.stderr import ProgressLine, print_note, size
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.terminal.tables import print_records, spelled
from gptcli.errors import GptcliError, UnsupportedArchitecture, UsageError
from gptcli.files import called_gguf, read_json
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import (
    DEFAULT_MODEL,
    LocalModel,
    find,
    find_named,
    fingerprint,
    first_gguf,
    is_name,
    local_models,
    missing,
    missing_root_notes,
)
from gptcli.models.stores import unreadable_stores
from gptcli.settings import RuntimeConfig, SamplingConfig

if TYPE_CHECKING:
    from gptcli.models.catalog import FetchProgress

app = typer.Typer(
    cls=Group,
    help="List, inspect, fetch and remove local models.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_NAME_HELP = "A name that `gptcli models` lists, a directory, or a GGUF file."
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", envvar="GPTCLI_MODEL", autocompletion=options.model_names, help=_NAME_HELP),
]
InstalledName = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=options.model_names, help="A name that `gptcli models` lists.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a model of the same name.")]
OutputFile = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="The file to write. (default: NAME.gguf, in this directory)")
]
ForceFile = Annotated[bool, typer.Option("--force", help="Replace a file, or a model of the same name.")]


@app.callback()
def models(
    context: typer.Context,
    supported: Annotated[bool, typer.Option("--supported", help="List the model types that can be run.")] = False,
    as_json: options.Json = False,
) -> None:
    """List local models."""
    if context.invoked_subcommand:
        return
    if supported:
        types = [
            {"model_type": name, "about": (family.__doc__ or "").partition("\n")[0]}
            for name, family in FAMILIES.items()
        ]
        print_records(types, as_json)
        return
    found = [_list_entry(model) for model in local_models()]
    in_stores = any(entry["store"] for entry in found)
    print_records(found, as_json, partial(_list_row, in_stores=in_stores))
    if as_json:
        return
    for note in [*missing_root_notes(), *unreadable_stores()]:
        print_note(note)
    for entry in found:
        if entry["error"]:
            print_note(f"{entry['name']} cannot be used: {entry['error']}")
    if not found:
        print_note(f"no models yet; `gptcli models pull {DEFAULT_MODEL}` fetches the default one")


@app.command(cls=Command)
def show(name: Name = DEFAULT_MODEL, as_json: options.Json = False) -> None:
    """Show what a model is: shapes, context, template, defaults and where each comes from, memory it will need."""
    lm = LanguageModel(name, ModelFolder.open(_path(name)), RuntimeConfig())
    facts = _facts(lm)
    if as_json:
        print_records([facts], as_json=True)
        return
    rows = []
    for key, value in facts.items():
        inner = value if isinstance(value, dict) else {"": value}
        for name, item in inner.items():
            # In a pipe, too, a setting and its source are one value; a number stays a number.
            shown = item if isinstance(item, int) else spelled(item)
            rows.append({"": f"{key}.{name}".rstrip("."), "value": shown})
    print_records(rows, as_json=False, row=_fact_row, header=False)


@app.command(cls=Command)
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{DEFAULT_MODEL}, or OWNER/NAME on the hub.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="PATTERN", help="Of several files of weights, such as '*Q4_K_M*'.")
    ] = None,
    new_name: Annotated[str | None, typer.Option("--name", help="(default: OWNER/NAME)")] = None,
    force: Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch a model; prints the directory it is in."""
    from gptcli.models.pull import pull_default, pull_hub

    notes: list[str] = []

    def fetch(on_progress: FetchProgress) -> Path:
        if name == DEFAULT_MODEL and revision is None and new_name is None and file is None:
            return pull_default(on_progress)
        return pull_hub(
            name, revision, on_progress, name=new_name, pattern=file, check=_check, on_note=notes.append, replace=force
        )

    _install(new_name or name, force, quiet, fetch)
    for note in () if quiet else notes:
        print_note(note)


@app.command("import", cls=Command)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A GGUF file, or the first part of one.")],
    name: Annotated[str | None, typer.Option("--name", help="The model's name. (default: the file's)")] = None,
    force: Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert a GGUF file into a model directory, keeping Q4_0, Q4_1 and Q8_0 as they are; prints the directory."""
    from gptcli.models.pull import import_gguf

    name = name or file.stem.lower()
    _install(name, force, quiet, partial(import_gguf, file, name, check=_check, replace=force))


@app.command(cls=Command)
def export(
    name: Name,
    file: OutputFile = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="As a GGUF file, the one format there is.")] = False,
    force: ForceFile = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a model as a file that other programs read, with every weight as it is; prints the file's path."""
    if not gguf:
        raise UsageError("the format is missing", hint=f"gptcli models export {name} --gguf FILE")
    _write_gguf(name, file or _file_name(name, ""), force, quiet, None)


@app.command(cls=Command)
def quantize(
    name: Name,
    to: Annotated[
        Literal["int8", "int4", "q8_0", "q6_k", "q4_k", "q4_0"],
        typer.Option("--to", help="int8 and int4: a model; others: a GGUF file."),
    ],
    file: OutputFile = None,
    new_name: Annotated[str | None, typer.Option("--name", help="Of the new model. (default: NAME-TO)")] = None,
    force: ForceFile = False,
    quiet: options.Quiet = False,
) -> None:
    """Round a model's weights to fewer bits, as a new model or a GGUF file; prints where it is."""
    if to != "int8" and to != "int4":
        if new_name is not None:
            raise UsageError("--name is for int8 and int4; a GGUF file is named as an argument")
        _write_gguf(name, file or _file_name(name, f"-{to.upper()}"), force, quiet, to)
        return
    if file is not None:
        raise UsageError("int8 and int4 become a model, not a file", hint="--name NAME names it")
    from gptcli.export.quantized_folder import quantized_size, write_quantized
    from gptcli.models.install import install_whole

    folder = ModelFolder.open(_path(name))
    new_name = new_name or f"{name if is_name(name) else Path(name).name}-{to}"

    def write(on_progress: FetchProgress) -> Path:
        def fill(target: Path) -> None:
            progress = partial(on_progress, "quantizing")
            write_quantized(folder, target, to, progress)
            _check(target)

        source = {"quantized": name, "to": to, "of": fingerprint(folder.path)}
        return install_whole(new_name, quantized_size(folder, to), fill, source, replace=force)

    _install(new_name, force, quiet, write)


@app.command(cls=Command)
def merge(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, or the directory of an adapter.")],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="DIR[=WEIGHT]", help="An adapter. Repeatable.")
    ] = None,
    new_name: Annotated[str | None, typer.Option("--name", help="Of the new model. (default: NAME-merged)")] = None,
    force: Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Add adapters to a model's weights, as a new model in fp32; prints where it is."""
    from gptcli.checkpoint.adapters import Adapter
    from gptcli.export.dense_folder import refuse_gguf, write_merged
    from gptcli.models.install import install_whole

    lm = LanguageModel.open(name, RuntimeConfig(adapter=tuple(adapter or ())), offline=True)
    refuse_gguf(lm.folder)
    if not lm.runtime.adapters:
        raise UsageError("there is nothing to merge", "--adapter DIR names an adapter")
    adapters = [Adapter.open(Path(path), weight) for path, weight in lm.runtime.adapters]
    new_name = new_name or f"{name if is_name(name) else Path(name).name}-merged"

    def write(on_progress: FetchProgress) -> Path:
        def fill(target: Path) -> None:
            write_merged(lm.folder, adapters, target, lambda done, total: on_progress("merging", done, total))
            _check(target)

        source = {"merged": name, "adapters": list(lm.runtime.adapter), "of": lm.fingerprint}
        return install_whole(new_name, 4 * lm.folder.parameter_count, fill, source, replace=force)

    _install(new_name, force, quiet, write)


@app.command(cls=Command)
def rm(name: InstalledName, quiet: options.Quiet = False) -> None:
    """Remove a model that gptcli installed."""
    from gptcli.models.install import remove
    from gptcli.runtime.fast_start.snapshots import forget_snapshots

    path = remove(name)
    forget_snapshots(path)
    if not quiet:
        print_note(f"removed {path}")


@app.command(cls=Command)
def verify(name: Name = DEFAULT_MODEL, as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Check a model from end to end: files, tensors, every weight, tokenizer, template; say what is left over."""
    model = LocalModel(name, _path(name))
    with ProgressLine(quiet=quiet) as activity:
        verified = verification(model, activity)
    sink = StdoutSink()
    if as_json:
        sink.write(json_line(verified.record))
    elif not quiet:
        marks = {True: "ok", None: "--"}
        lines = [(f"{marks[check.ok]}  ", check.detail) for check in verified.checks if check.ok is not False]
        lines += [("note  ", str(note)) for note in verified.notes]
        lines.append(("verdict: ", verified.verdict))
        columns = terminal_columns() if sink.is_terminal else sys.maxsize
        sink.write("".join(f"{hanging(head, text, columns)}\n" for head, text in lines).encode("utf-8", "replace"))
    if verified.failure is not None:
        raise verified.failure


def _check(directory: Path) -> None:
    """Raises if a model cannot be used; before its weights are there, only its type is checked."""
    if gguf := first_gguf(directory):
        LanguageModel(directory.name, ModelFolder.open(gguf), RuntimeConfig())
    if not (directory / "config.json").exists():
        return
    model_type = read_json(directory / "config.json", notes=[], contradictions=True).get("model_type")
    if model_type not in FAMILIES:
        hint = "run `gptcli models --supported` to see which are"
        raise UnsupportedArchitecture(f"`{model_type}` models are not supported", hint)
    if any(directory.glob("*.safetensors")):
        LanguageModel(directory.name, ModelFolder.open(directory), RuntimeConfig())


def _install(name: str, force: bool, quiet: bool, fetch: Callable[[FetchProgress], Path]) -> None:
    existing = find_named(name)
    if existing and not force:
        if not quiet:
            print_note(f"{name} is already here; --force replaces it")
        path = existing.path
    else:
        with ProgressLine(quiet=quiet) as activity:
            path = fetch(activity.bytes)
    StdoutSink().write_names(f"{path}\n")


def _write_gguf(name: str, file: Path, force: bool, quiet: bool, to: str | None) -> None:
    from gptcli.export.gguf_file import write_model

    if os.path.exists(file) and not force:
        raise UsageError(f"already there: {file}", hint="--force replaces it")
    lm = LanguageModel(name, ModelFolder.open(_path(name)), RuntimeConfig())
    with ProgressLine(quiet=quiet) as activity:
        progress = partial(activity.bytes, "writing")
        notes = write_model(lm.folder, lm.tokenizer, Path(name).name, file, to=to, new=not force, on_progress=progress)
        activity.note_leftovers([*lm.notes, *notes])
    StdoutSink().write_names(f"{file}\n")


def _file_name(name: str, suffix: str) -> Path:
    """A file in this directory, for a model's name or path."""
    last = Path(name)
    stem = last.stem if called_gguf(last.name) else last.name
    return Path(f"{stem.replace(':', '-')}{suffix}.gguf")


def _path(name: str) -> Path:
    model = find(name)
    if model is None:
        raise missing(name)
    return model.path


def _list_entry(model: LocalModel) -> dict[str, Any]:
    kind, parameters, error = "", 0, None
    try:
        folder = ModelFolder.open(model.path)
        kind = str(folder.config.get("model_type"))
        parameters = folder.parameter_count
    except GptcliError as failure:
        error = failure.message
    return {
        "name": model.name,
        "type": kind,
        "parameters": parameters,
        "bytes": model.size,
        "path": str(model.path),
        "error": error,
        "store": model.store,
    }


def _list_row(entry: dict[str, Any], *, in_stores: bool) -> dict[str, str]:
    count = entry["parameters"]
    weights = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M" if count >= 1e6 else f"{count:,}"
    row = {
        "name": entry["name"],
        "type": entry["type"],
        "weights": weights if count else "",
        "size": size(entry["bytes"]),
    }
    return row | {"store": entry["store"]} if in_stores else row


def _fact_row(fact: dict[str, Any]) -> dict[str, str]:
    name, value = fact[""], fact["value"]
    return {"": name, "value": size(value) if name.startswith("bytes.") else spelled(value)}


def _facts(lm: LanguageModel) -> dict[str, Any]:
    folder, config = lm.folder, lm.folder.architecture.config
    parameters = folder.parameter_count
    first, attention = config.blocks[0], next(iter(config.attentions), None)
    dtypes: dict[str, int] = {}
    for tensor in folder.tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + 1
    sampling = SamplingConfig.resolve({}, lm.sampling_defaults)
    packed = sorted({stored.about for stored in folder.weights.values() if stored.about})
    return {
        "name": lm.name,
        "path": str(folder.path),
        "type": folder.config["model_type"],
        "parameters": parameters,
        "layers": len(config.blocks),
        "hidden_size": config.hidden_size,
        "heads": attention and attention.heads,
        "kv_heads": attention and attention.kv_heads,
        "head_dim": attention and attention.head_dim,
        "mlp_width": getattr(first.mlp, "width", None),
        "vocabulary": config.vocab_size,
        "tokens": lm.tokenizer.size,
        "tied_head": config.tied_head,
        "context": config.max_context,
        "tensors": dtypes,
        "quantization": packed,
        "stop_ids": {where: list(ids) for where, ids in stop_sources(lm).items()},
        "chat_template": template_state(lm),
        "sampling": sampling_facts(lm, sampling, MODEL_SETTINGS),
        "bytes": {
            "on_disk": LocalModel(lm.name, folder.path).size,
            **weight_bytes(lm),
            "cache_a_token_in_fp32": config.cache_bytes(1, 4) - config.cache_bytes(0, 4),
            "cache_of_full_context_in_fp32": config.cache_bytes(config.max_context, 4),
        },
        "notes": [str(note) for note in lm.notes],
    }
