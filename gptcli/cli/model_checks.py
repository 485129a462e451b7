"""The checks of `gptcli models verify`, in order, and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.generation_config import generation_notes, generation_source
from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.errors import BrokenCheckpoint, BrokenTokenizer, GptcliError, NoTemplate
from gptcli.language_model import LanguageModel
from gptcli.model_notes import Note
from gptcli.models.catalog import LocalModel
from gptcli.runtime.resource_limits import check_room_for_torch
from gptcli.settings import RuntimeConfig, SamplingConfig
from gptcli.text.messages import Message

REFERENCE = "transformers"
_ORDER = "the order of filters"


@dataclass(frozen=True)
class Check:
    """One thing that was checked. ok: None if it could not be."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Verification:
    """The checks of a model up to the first that failed. failure: the error of that one."""

    model: str
    checks: Sequence[Check]
    notes: Sequence[Note]
    verdict: str
    failure: GptcliError | None

    @property
    def record(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return {
            "model": self.model,
            "checks": [asdict(check) for check in self.checks],
            "notes": [str(note) for note in self.notes],
            "verdict": self.verdict,
        }


def verification(model: LocalModel, activity: ProgressLine) -> Verification:
    """Checks a model from end to end."""
    steps = _Steps(model, activity)
    checks: list[Check] = []
    failure = None
    for name, step in steps.all():
        try:
            ok, detail = step()
        except GptcliError as error:
            failure, ok, detail = error, False, error.message
        checks.append(Check(name, ok, detail))
        if not ok and failure is not None:
            break
    return Verification(model.name, checks, steps.notes, _verdict(steps, failure), failure)


def template_state(lm: LanguageModel) -> str:
    """The default template's file name, or `none`. Raises TemplateError for one that fails."""
    try:
        template = lm.template
    except NoTemplate:
        return "none"
    template.render([Message("user", "Hello")], lm.tokenizer)
    return Path(template.where).name


class _Steps:
    """The checks of one model; `config` opens it for those that follow."""

    def __init__(self, model: LocalModel, activity: ProgressLine) -> None:
        self._model, self._activity = model, activity
        self._opened: LanguageModel | None = None

    def all(self) -> Iterator[tuple[str, Callable[[], tuple[bool | None, str]]]]:
        """The checks by their names."""
        checks = (self.files, self.config, self.weights, self.tokenizer, self.decoding, self.chat_template)
        for check in (*checks, self.sampling, self.numbers):
            yield check.__name__.replace("_", " "), check

    @property
    def notes(self) -> list[Note]:
        """What is left over in the model's files, if it could be opened."""
        return [] if self._opened is None else self._opened.notes

    @property
    def has_checksums(self) -> bool:
        """Whether checksums were recorded when the model was installed."""
        return bool(self._model.manifest.get("sha256"))

    @property
    def not_done(self) -> tuple[str, ...]:
        """What the model wants of generation and gptcli does not do."""
        if self._opened is None:
            return ()
        where, fields = generation_source(self._opened.folder)
        context = self._opened.folder.architecture.config.max_context
        names = tuple(name for note in generation_notes(fields, where, context) for name in note.names)
        return (*names, _ORDER) if self._reordered else names

    @property
    def _reordered(self) -> bool:
        """Whether the order of filters matters to the model's sampling defaults."""
        from gptcli.generation.sampling.filters import cuts

        config = SamplingConfig(**{"temperature": 1.0, "top_p": 1.0, "min_p": 0.0} | self._lm.sampling_defaults)
        return config.temperature not in (0, 1) and any(cuts(config))

    def files(self) -> tuple[bool | None, str]:
        """Whether the files are those that were installed."""
        from gptcli.models.install import changed_files

        self._activity.bytes("comparing checksums", 0, 0)
        if changed := changed_files(self._model.directory, self._model.manifest):
            raise BrokenCheckpoint(f"changed since it was installed: {self._model.path}: {', '.join(changed)}")
        if not self.has_checksums:
            return None, "no checksums were recorded"
        return True, f"{len(self._model.manifest['sha256'])} files are as installed"

    def config(self) -> tuple[bool, str]:
        """Whether all tensors of the model type are there, and fit the memory."""
        self._opened = LanguageModel(self._model.name, ModelFolder.open(self._model.path), RuntimeConfig())
        folder = self._lm.folder
        check_room_for_torch()
        from gptcli.checkpoint.load import empty_decoder
        from gptcli.runtime.device_plan import plan_for

        empty_decoder(folder)
        plan_for(folder, self._lm.runtime)  # whether it fits the memory
        return True, f"{len(folder.tensors)} tensors are well-formed, as {folder.config['model_type']} wants them"

    def weights(self) -> tuple[bool, str]:
        """Whether every weight is a number."""
        self._activity.bytes("checking weights", 0, 0)
        from gptcli.checkpoint.weights.tensor_source import non_finite_tensors

        if damaged := non_finite_tensors(self._lm.folder):
            raise BrokenCheckpoint(f"NaN or infinity: {self._lm.folder.path}: {', '.join(damaged[:5])}")
        return True, "no weight is NaN or infinite"

    def tokenizer(self) -> tuple[bool, str]:
        """The tokenizer's facts; `config` has opened it."""
        tokenizer = self._lm.tokenizer
        instead = f", with its class's own {', '.join(tokenizer.unread)}" if tokenizer.unread else ""
        return True, f"tokenizer: {tokenizer.size} tokens{instead}"

    def decoding(self) -> tuple[bool, str]:
        """Whether tokens decode as in the tokenizers library."""
        from gptcli.text.decode_check import decode_differences

        self._activity.bytes("decoding every token", 0, 0)
        if differences := decode_differences(self._lm.tokenizer):
            raise BrokenTokenizer(
                f"tokens decode to other texts than in the tokenizers library: {self._lm.folder.path}: "
                f"{'; '.join(differences)}"
            )
        return True, "tokens decode to the texts of the tokenizers library"

    def chat_template(self) -> tuple[bool | None, str]:
        """Whether the template renders a question."""
        state = template_state(self._lm)
        marked = state != "none" and self._lm.template.source.startswith("\ufeff")
        mark = ", which puts its byte-order mark before every prompt" if marked else ""
        return None if state == "none" else True, f"chat template: {state}{mark}"

    def sampling(self) -> tuple[bool, str]:
        """Whether the model's sampling defaults are valid, and where they come from."""
        defaults = self._lm.sampling_defaults
        SamplingConfig.resolve({}, defaults)
        where, fields = generation_source(self._lm.folder)
        order = f"; {_ORDER} is gptcli's, which has temperature last" if self._reordered else ""
        says_nothing = fields.get("do_sample") is None and not self._lm.folder.is_gguf
        greedy = "; greedy in transformers, and drawn here" if says_nothing else ""
        of_store = len(self._lm.store.sampling)
        of = f"{len(defaults) - of_store} of {where}" if len(defaults) > of_store else "none of the model"
        of += f", {of_store} of Ollama" if of_store else ""
        return True, f"sampling defaults: {of}{order}{greedy}"

    def numbers(self) -> tuple[None, str]:
        """What cannot be checked here."""
        if not self._lm.folder.is_gguf:
            return None, f"logits were not compared: {REFERENCE} is no part of gptcli"
        return None, "logits were not compared: neither llama.cpp nor the model that the file was made of is here"

    @property
    def _lm(self) -> LanguageModel:
        assert self._opened is not None, "a model that does not open ends the checks"
        return self._opened


def _verdict(steps: _Steps, failure: GptcliError | None) -> str:
    if isinstance(failure, BrokenTokenizer):
        return f"not the same texts as {REFERENCE}: {failure.message.partition(':')[0]}"
    if failure is not None:
        return f"cannot be used: {failure.message.partition(':')[0]}"
    not_compared = "logits" if steps.has_checksums else "checksums and logits"
    done = f"no fault found; {not_compared} were not compared"
    return f"{done}; texts may differ from {REFERENCE} by {', '.join(steps.not_done)}" if steps.not_done else done
