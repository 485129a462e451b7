"""`gptcli train`: fine-tunes a model, or makes a new one; --resume continues a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptcli.cli import options
from gptcli.cli.json_records import json_line
from gptcli.cli.parsing.option_groups import option_group, panel, with_option_groups
from gptcli.cli.prompt_input import argument_text
from gptcli.cli.terminal.signals import deadly, stoppable
from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.training.inputs import documents_of, expanded
from gptcli.cli.training.progress import TrainingProgress
from gptcli.errors import InputError, UsageError
from gptcli.models.catalog import DEFAULT_MODEL, fingerprint
from gptcli.models.locate import locate
from gptcli.runtime.ranks import ranks_here
from gptcli.runtime.resource_limits import check_room_for_torch, cpu_limit, keep_freed_memory, return_freed_memory
from gptcli.training.settings import Schedule, TrainSettings

if TYPE_CHECKING:
    from gptcli.training.checkpoints import RunDirectory
    from gptcli.training.parallel.data_parallel import Processes
    from gptcli.training.run import Run

_DEFAULTS = TrainSettings(data=())
_LEARNING_RATES = {"lora": 5e-4, "full": 5e-5, "new": 1e-3}

_data_option, _model_option, _lora_option = panel("Data"), panel("Model"), panel("Adapter")
_training_option, _running_option = panel("Training"), panel("Run")

Data = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DATA]...", help="Text files, JSON lines or CSV by their endings, patterns, or `-` for stdin."
    ),
]


@option_group
class DataOptions:
    """The data of training, and of the held-out loss."""

    eval: Annotated[str | None, _data_option("Held-out data. (default: a share of DATA)", metavar="FILE")] = None
    eval_share: Annotated[float, _data_option("The share of DATA that is held out; 0 is none.")] = _DEFAULTS.eval_share
    format: Annotated[
        Literal["auto", "text", "jsonl", "json", "csv"], _data_option("What DATA holds; auto: by each file's ending.")
    ] = _DEFAULTS.format
    block_size: Annotated[int, _data_option("Tokens of a sequence.")] = _DEFAULTS.block_size
    truncate: Annotated[bool, _data_option("Cut examples that are longer.", "--truncate")] = False


@option_group
class ModelOptions:
    """The model that is trained, and the device."""

    model: Annotated[
        str | None,
        _model_option(
            f"A directory, or a name that `gptcli models` lists. (default: {DEFAULT_MODEL})",
            "-m",
            "--model",
            envvar="GPTCLI_MODEL",
            autocompletion=options.model_names,
        ),
    ] = None
    new: Annotated[
        str | None, _model_option("Make a new model of this config.json, with random weights.", metavar="CONFIG.json")
    ] = None
    vocab_size: Annotated[int, _model_option("Most tokens of a new model's tokenizer.")] = _DEFAULTS.vocab_size
    tokenizer: Annotated[
        str | None, _model_option("A new model's tokenizer. (default: one trained on DATA)", metavar="DIR")
    ] = None
    device: Annotated[str, _model_option("auto, cpu, cuda or cuda:N.")] = _DEFAULTS.device
    dtype: Annotated[Literal["fp32", "bf16"], _model_option("Precision of products; weights stay in fp32.")] = (
        _DEFAULTS.dtype
    )
    threads: Annotated[int | None, _model_option("CPU threads. (default: one a core)", min=1)] = None
    save_memory: Annotated[
        bool, _model_option("Compute each layer twice instead of keeping what it computed.", "--save-memory")
    ] = False
    fsdp: Annotated[
        bool, _model_option("Share every weight out among the processes of torchrun; each holds a part.", "--fsdp")
    ] = False
    offline: options.Offline = False


@option_group
class AdapterOptions:
    """Which weights are trained."""

    full: Annotated[bool, _lora_option("Train every weight, not an adapter. A new model always is.", "--full")] = False
    lora: Annotated[int | None, _lora_option("The adapter's rank. (default: 16)", metavar="RANK")] = None
    lora_alpha: Annotated[float | None, _lora_option("Its scale times its rank. (default: twice the rank)")] = None
    lora_dropout: Annotated[float, _lora_option("The share of inputs that it does not see.")] = _DEFAULTS.lora_dropout
    lora_targets: Annotated[
        list[str] | None,
        _lora_option("Layers with an adapter, such as q_proj. Repeatable. (default: all linear ones)", metavar="NAME"),
    ] = None


@option_group
class TrainingOptions:
    """How it is trained."""

    epochs: Annotated[int, _training_option("How many times all data is learned.")] = _DEFAULTS.epochs
    max_steps: Annotated[int | None, _training_option("End after so many steps, whatever --epochs says.")] = None
    batch_size: Annotated[int, _training_option("Sequences of a step.", "-b", "--batch-size")] = _DEFAULTS.batch_size
    micro_batch: Annotated[int | None, _training_option("Sequences that are run at once. (default: all of a step)")] = (
        None
    )
    learning_rate: Annotated[
        float | None,
        _training_option(
            "The highest rate. (default: 5e-4 for an adapter, 5e-5 with --full, 1e-3 with --new)", "--learning-rate"
        ),
    ] = None
    schedule: Annotated[Schedule, _training_option("How the rate falls.")] = _DEFAULTS.schedule
    warmup: Annotated[int, _training_option("Steps in which the rate rises.")] = _DEFAULTS.warmup
    weight_decay: Annotated[float, _training_option("AdamW's, of all but norms and biases.")] = _DEFAULTS.weight_decay
    clip: Annotated[float, _training_option("The gradient's largest norm; 0 is off.")] = _DEFAULTS.clip
    seed: Annotated[int, _training_option("A seed brings the same run again.", "-s", "--seed")] = _DEFAULTS.seed


@option_group
class RunOptions:
    """What is written and shown."""

    resume: Annotated[
        bool, _running_option("Go on with the run in OUT, as if it had never been stopped.", "--resume")
    ] = False
    eval_every: Annotated[
        int | None, _running_option("Steps between held-out losses. (default: a tenth of the run)")
    ] = None
    save_every: Annotated[int | None, _running_option("Steps between checkpoints, beside those by time.")] = None
    save_minutes: Annotated[float, _running_option("Minutes between checkpoints.")] = _DEFAULTS.save_minutes
    sample: Annotated[
        list[str] | None,
        _running_option("Continue this text at each held-out loss. Repeatable.", metavar="TEXT"),
    ] = None
    max_input: Annotated[int, _running_option("Longest line of data in bytes.", min=1)] = options.MAX_INPUT
    as_json: options.Json = False
    quiet: options.Quiet = False


Out = Annotated[
    Path, typer.Option("-o", "--out", metavar="OUT", help="The directory of the run, and of what it makes.")
]


@with_option_groups
def train(
    context: typer.Context,
    data: Data = None,
    *,
    out: Out,
    what: DataOptions,
    model: ModelOptions,
    adapter: AdapterOptions,
    how: TrainingOptions,
    run: RunOptions,
) -> None:
    """Fine-tune a model on texts or conversations, or make a new one; prints the directory that it is in."""
    groups = (what, model, adapter, how, run)
    if not data and not run.resume:
        raise UsageError("there is no data", "gptcli train notes.txt -o OUT, or --resume to go on with a run")
    typed = _typed(context)
    asked = _settings(expanded(data or ()), groups, typed)
    ranks = ranks_here()
    if asked.fsdp and ranks is None:
        raise UsageError("--fsdp needs several processes", "torchrun --nproc-per-node 2 -m gptcli train ... --fsdp")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see gptcli/runtime/loader.py
    check_room_for_torch()
    if asked.fsdp:  # gathers and frees weights all the time
        return_freed_memory()
    else:
        keep_freed_memory()
    leads = ranks is None or ranks.rank == 0
    with ProgressLine(quiet=run.quiet or not leads) as activity, ExitStack() as stack:
        with deadly(activity.erase):
            from gptcli.training.checkpoints import RunDirectory
            from gptcli.training.parallel.data_parallel import Processes
            from gptcli.training.run import Run

            directory, processes = RunDirectory(out), Processes(ranks, asked.device)
            settings: TrainSettings | None = asked
            if leads:
                stack.enter_context(directory.locked())
                settings = _kept(directory, asked, typed, resume=run.resume)
            settings = processes.broadcast(settings)
            loaded = None
            if settings is not None:
                base = _base(directory, settings, model.offline, run.max_input, activity, processes)
                loaded = Run(directory, settings, base, activity.note, activity.bytes, processes)
        if loaded is None:
            activity.note(f"the run in {out} is finished")
        else:
            _train(loaded, activity, as_json=run.as_json and leads)
    if leads:
        sink = StdoutSink()
        if run.as_json:
            sink.write(json_line({"event": "done", "path": str(out)}))
        else:
            sink.write_names(f"{out}\n")


def _train(run: Run, activity: ProgressLine, *, as_json: bool) -> None:
    """Trains to the end. A signal, Ctrl-C too, leaves a checkpoint before the process ends."""
    training = run.training
    with stoppable() as stop:
        progress = TrainingProgress(training, activity, as_json=as_json)
        for event in run.events(stop):
            progress.took(event)
        if training.step < training.steps:
            activity.note(f"stopped at step {training.step}; --resume goes on")
            if not stop.killed_by:
                raise KeyboardInterrupt


def _typed(context: typer.Context) -> set[str]:
    """The names of the parameters that were typed."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _settings(data: Sequence[str], groups: Sequence[Any], typed: set[str]) -> TrainSettings:
    """The settings that options ask for. Raises UsageError for a value out of range."""
    given = {name: value for group in groups for name, value in vars(group).items()}
    kind = "new" if given["new"] else "full" if given["full"] else "lora"
    if kind != "lora" and given["lora"] is not None:
        raise UsageError(f"--{kind} and --lora exclude each other")
    if given["new"] is None:
        model = given["model"] or DEFAULT_MODEL
        given["model"] = os.path.abspath(model) if os.path.exists(model) else model
    elif "model" not in typed:  # from the environment
        given["model"] = None
    given["data"] = tuple(data)
    if kind != "lora":
        given["lora"] = None
    elif given["lora"] is None:
        given["lora"] = _DEFAULTS.lora
    if given["learning_rate"] is None:
        given["learning_rate"] = _LEARNING_RATES[kind]
    given["threads"] = given["threads"] or min(os.cpu_count() or 1, cpu_limit())
    given["sample"], given["lora_targets"] = tuple(given["sample"] or ()), tuple(given["lora_targets"] or ())
    for value in given.values():  # a run records them
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                argument_text(text)
    return TrainSettings(**{field.name: given[field.name] for field in fields(TrainSettings)})


def _kept(directory: RunDirectory, asked: TrainSettings, typed: set[str], *, resume: bool) -> TrainSettings | None:
    """The settings of the run in a directory, `asked` for a new run, None for a finished one. Raises UsageError."""
    from gptcli.training.run import move_result

    record = directory.record
    if record is None:
        if not asked.data:
            raise UsageError(f"there is no run to go on with: {directory.path}", "give the data that one begins with")
        if directory.is_foreign():
            raise UsageError(f"not empty, and not a run's: {directory.path}", "choose another -o")
        return asked
    if not resume:
        raise UsageError(
            f"there is a run already: {directory.path}", "--resume goes on with it; another -o begins a new one"
        )
    kept = TrainSettings.from_record(record["settings"])
    changes = {"full": "lora"}
    for name in typed & {"full", *vars(kept)}:
        field = changes.get(name, name)
        if (before := getattr(kept, field)) != getattr(asked, field):
            raise UsageError(f"a run that goes on keeps its settings: its {field.replace('_', '-')} is {before}")
    if (directory.path / "result").exists() or record.get("finished"):
        move_result(directory)
        return None
    return kept


def _base(
    directory: RunDirectory,
    settings: TrainSettings,
    offline: bool,
    max_input: int,
    activity: ProgressLine,
    processes: Processes,
) -> Path:
    """The folder of the model that is trained. Waits until the first process has begun the run."""
    from gptcli.training.run import begin

    base = None
    if settings.model is not None:
        base = locate(settings.model, offline=offline or not processes.leads, on_progress=activity.fetch)
    if processes.leads:
        if (record := directory.record) is None:
            begin(directory, settings, base, documents_of(settings.format, max_input, activity.note), activity.note)
        elif base is not None and record["fingerprint"] != fingerprint(base):
            raise InputError(f"cannot go on: {settings.model} has changed since the run in {directory.path} began")
        elif record["ranks"] != processes.ranks:
            raise UsageError(f"a run that goes on keeps its number of processes: it is {record['ranks']}")
    processes.broadcast(None)
    return base or directory.initial
