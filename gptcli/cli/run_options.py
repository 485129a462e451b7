"""The options of a run of a model, and the steps that commands share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

from gptcli.cli.json_records import json_line, stats_record
from gptcli.cli.model_facts import doubled_bos, has_template
from gptcli.cli.options import OutputOptions, PromptOptions, RuntimeOptions
from gptcli.cli.prompt_input import Decoding, argument_text, read_prompt, read_text
from gptcli.cli.template_choice import chosen_template
from gptcli.cli.terminal.signals import deadly
from gptcli.cli.terminal.stderr import ProgressLine, print_line, print_note, stats_line, tokens
from gptcli.errors import TemplateError, UsageError
from gptcli.generation.events import Finished
from gptcli.language_model import ChatSession, LanguageModel
from gptcli.models.catalog import DEFAULT_MODEL, missing_root_notes
from gptcli.runtime.engine import Workload
from gptcli.settings import ChatSettings, ConstraintConfig
from gptcli.text.chat_templates.chat_template import ChatTemplate, Switches
from gptcli.text.messages import Message

if TYPE_CHECKING:
    from gptcli.tools.formats import ToolUse


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A run of a model, as the options of `generate`, `chat`, `score` or `bench` ask for it.

    model: None is the default one. given: the settings that options gave, by the names of SamplingConfig's fields, or
    of ChatSettings' in a conversation. constraint, tools: outside a conversation. configured: the parameters that the
    configuration file gave.
    """

    model: str | None
    runtime: RuntimeOptions
    given: Mapping[str, Any] = field(default_factory=dict)
    prompts: PromptOptions = PromptOptions()
    output: OutputOptions
    constraint: ConstraintConfig | None = None
    configured: frozenset[str] = frozenset()
    tools: ChatSettings = ChatSettings()

    @property
    def decoding(self) -> Decoding:
        """How texts are read before there is a progress line."""
        return Decoding(self.prompts.errors, self.prompts.max_input, self.note)

    def __post_init__(self) -> None:
        self.runtime.config()  # a bad value fails here
        if self.model == "":
            raise UsageError("-m must name a model")

    def note(self, message: str) -> None:
        """Prints a note, unless notes are not wanted."""
        if not self.output.quiet:
            print_note(message)

    def question(self, argument: str | None, *, asks: bool) -> str:
        """The whole prompt, from argument, file and stdin; raises as `read_prompt` does.

        asks: whether a chat template asks it. Then a line of stdin is noted at a terminal: its newline is read, too.
        """
        text = read_prompt(argument, self.prompts.file, self.decoding)
        from_stdin = argument in (None, "-") and str(self.prompts.file or "-") == "-"
        if asks and from_stdin and text.find("\n") == len(text) - 1 and sys.stderr and sys.stderr.isatty():
            self.note("the question ends with a newline, which the model reads; `echo -n` writes none")
        return text

    def system(self) -> str | None:
        """The system message, if there is one. Raises UsageError or InputError."""
        if self.prompts.system_file is not None:
            return read_text(self.prompts.system_file, self.decoding)
        return None if self.prompts.system is None else argument_text(self.prompts.system)

    def open_model(self, activity: ProgressLine, workload: Workload | None = None) -> LanguageModel:
        """Opens the model, without loading it, and notes what is left over in its files.

        workload: what the model will run. Raises as `LanguageModel.open` does.
        """
        name = self.model or DEFAULT_MODEL
        for note in missing_root_notes(name):
            activity.note(note)
        lm = LanguageModel.open(
            name,
            self.runtime.config(),
            offline=self.runtime.offline,
            on_fetch=activity.fetch,
            workload=None if self.output.prompt_report else workload,
        )
        if not self.output.prompt_report:  # a report lists them whole
            activity.note_leftovers(lm.notes)
        return lm

    def template(self, lm: LanguageModel) -> ChatTemplate | None:
        """The chat template that replaces the model's default one, if any. Raises as `chosen_template` does."""
        given, strict = self.prompts.chat_template, replace(self.decoding, errors="strict")
        return None if given is None else chosen_template(given, lm.folder.path, lm.tokenizer, strict)

    def print_figures(self, finished: Finished, ctx_size: int) -> None:
        """Prints a generation's figures on stderr, as `--stats` or `--stats=json` wants them."""
        if self.output.quiet:
            return
        if self.output.stats_json:
            print_line(json_line(stats_record(finished)).decode().rstrip())
        elif self.output.stats:
            print_line(stats_line(finished, ctx_size))

    def note_ending(
        self,
        finished: Finished,
        max_tokens: int,
        lm: LanguageModel,
        question: str | None = None,
        *,
        constrained: bool = False,
    ) -> None:
        """Notes at a terminal that a text is empty or cut, or that `question` was continued and not asked.

        A cut that leaves a constraint unmet is noted in a pipe, too.
        """
        if self.output.as_json:
            return
        if finished.cut_call:
            self.note("cut amid a call of a tool, which is left out; -n sets how many tokens")
        elif finished.reason == "length" and constrained:
            self.note("cut before the text was what it had to be; -n sets how many tokens")
        elif finished.stop is not None and constrained:
            self.note("cut at a stop text, so it may not be what it had to be")
        if constrained or not all(stream and stream.isatty() for stream in (sys.stdout, sys.stderr)):
            return
        to_ask = question is not None and has_template(lm)
        if not finished.usage.completion_tokens and finished.reason == "stop":
            self.note(f"the model ended at once{'; --chat asks it a question' if to_ask else ''}")
        elif to_ask and question is not None and question.rstrip().endswith("?"):
            self.note("this continued the question; --chat asks it")
        if finished.reason == "length":
            cut = finished.usage.completion_tokens == max_tokens
            self.note(f"cut at {tokens(max_tokens)}; -n sets how many" if cut else "cut: the context is full")

    def switches(self, template: ChatTemplate) -> Switches:
        """The template's switches and tools. Raises UsageError for an option's switch that the template lacks."""
        switches = cast("Switches", self.without_missing_switches(self.prompts.switches, template))
        template.check_switches(**switches)
        return {**switches, "tools": self.tools.offered}

    def tool_use(self, template: ChatTemplate | None, lm: LanguageModel) -> ToolUse | None:
        """Finds the calls in a text, outside a conversation; None without tools. Raises as `ChatTemplate.tool_use`."""
        if template is None or not self.tools.offered:
            return None
        use = template.tool_use(self.tools.tools, self.tools.tool_choice, lm.tokenizer)
        note_unheld(use, self.note)
        return use

    def without_missing_switches(self, values: Mapping[str, object], template: ChatTemplate) -> dict[str, object]:
        """The values less switches of the configuration file that the template lacks."""
        dropped = self.configured & template.missing_switches
        return {name: value for name, value in values.items() if name not in dropped}

    def print_failures(self, lm: LanguageModel) -> None:
        """Notes why text came slower than it could."""
        for failure in lm.failures:
            self.note(failure)


def template_of(run: RunOptions, lm: LanguageModel) -> Callable[[], tuple[ChatTemplate, Switches]]:
    """Returns a function that finds the chat template and its switches at its first call. Raises as both do."""

    @cache
    def found() -> tuple[ChatTemplate, Switches]:
        template = run.template(lm) or lm.template
        return template, run.switches(template)

    return found


def load_model(lm: LanguageModel, activity: ProgressLine, workload: Workload | None = None) -> None:
    """Loads what the workload needs, with progress on a terminal. Signals end the process at once."""
    loading = partial(activity.bytes, f"loading {lm.folder.path.name}")
    loading(0, 0)  # importing torch, if it is needed, takes a second
    with deadly(activity.erase):
        lm.load(loading, workload)


def note_doubled_bos(lm: LanguageModel, ids: Sequence[int], note: Callable[[str], None]) -> None:
    """Notes a prompt that begins with BOS twice, once from the text or template. ids: the first suffice."""
    if bos := doubled_bos(lm.tokenizer, ids):
        note(f"the prompt begins with {bos} twice, which no model was trained on; --prompt-report shows where from")


def note_template_with_doubled_bos(session: ChatSession, note: Callable[[str], None]) -> None:
    """The same for what the session's template begins with. A template that fails is reported when it is used."""
    messages = [Message("user", "a")] if session.system is None else [Message("system", "a"), Message("user", "a")]
    with contextlib.suppress(TemplateError):
        ids = session.template.render(messages, session.lm.tokenizer, thinking=session.settings.thinking)
        note_doubled_bos(session.lm, ids, note)


def note_unheld(use: ToolUse | None, note: Callable[[str], None]) -> None:
    """Notes that strict tools are not enforced."""
    if use is not None and use.unheld:
        note("strict tools are not held to their schemas: this model marks no beginning of a call")
