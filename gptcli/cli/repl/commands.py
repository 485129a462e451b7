"""The table of commands: a new one is a function and a row. How they are found and completed is `slash.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from prompt_toolkit.shortcuts import clear

from gptcli.chat.thinking import opens_thoughts, without_thoughts
from gptcli.cli.repl import actions as talk
from gptcli.cli.repl.clipboard import copy
from gptcli.cli.repl.slash_command import Command, find
from gptcli.cli.terminal.stderr import is_dumb_terminal
from gptcli.cli.terminal.token_flow import TokenFlow, grouped, terminal_columns, uses_colour
from gptcli.errors import UsageError

if TYPE_CHECKING:
    from gptcli.cli.repl.repl import Repl


class Leave(Exception):
    """The person has had enough."""


def _help(repl: Repl, name: str) -> None:
    if name:
        command = find(name.removeprefix("/"), COMMANDS)
        repl.say(f"{command.usage}\n  {command.help}\n  example: {command.example}")
        return
    width = max(len(command.usage) for command in COMMANDS)
    for command in COMMANDS:
        repl.say(f"{command.usage:{width}}  {command.help.split('.')[0]}")


def _exit(repl: Repl, _: str) -> NoReturn:
    raise Leave


def _copy(repl: Repl, _: str) -> None:
    answer = without_thoughts(talk.last(repl, "assistant"), inside=opens_thoughts(repl.session))
    repl.say(f"copied {len(answer)} characters {copy(answer)}")


def _tokens(repl: Repl, text: str) -> None:
    if not text and not repl.session.messages:
        raise UsageError("there is nothing yet", hint="/tokens TEXT shows those of a text")
    tokenizer = repl.session.lm.tokenizer
    ids = tokenizer.encode(text or repl.session.messages[-1].content)
    flow = TokenFlow(terminal_columns(), colour=uses_colour(True))
    groups = grouped((tokenizer.token_bytes(id), tokenizer.is_control(id)) for id in ids)
    repl.paint("".join(map(flow.add, groups)) + flow.end())
    repl.say(f"{len(ids)} tokens")


def _probs(repl: Repl, switch: str) -> None:
    repl.view.probabilities = talk.switched(switch) if switch else not repl.view.probabilities
    repl.say(f"answers are {'shaded by probability' if repl.view.probabilities else 'not shaded'} from now on")


def _stats(repl: Repl, switch: str) -> None:
    if switch:
        repl.view.stats = talk.switched(switch)
    finished = repl.session.finished
    if not finished:
        repl.say("no answer yet")
        return
    last = finished[-1].usage
    prefilled = round(last.prefill_s * last.prefill_tokens_per_s)
    cached = last.prompt_tokens - prefilled
    repl.say(f"prompt   {last.prompt_tokens} tokens: {cached} still in the cache, {prefilled} run")
    repl.say(f"prefill  {last.prefill_tokens_per_s:.0f} tok/s, the first token after {last.ttft_s * 1000:.0f} ms")
    repl.say(f"answer   {last.completion_tokens} tokens at {last.decode_tokens_per_s:.1f} tok/s")
    drawn = sum(answer.usage.completion_tokens for answer in finished)
    seconds = sum(answer.usage.decode_s for answer in finished)
    answers = "1 answer" if len(finished) == 1 else f"{len(finished)} answers"
    repl.say(f"so far   {answers}, {drawn} tokens in {seconds:.1f} s; loaded in {last.load_s:.1f} s")


def _context(repl: Repl, _: str) -> None:
    used, size = repl.session.used, repl.session.lm.ctx_size
    repl.say(f"{used} of {size} tokens of context in use, {size - used} free; {talk.turns(repl.session)}")


def _markdown(repl: Repl, switch: str) -> None:
    repl.view.markdown = talk.switched(switch) if switch else not repl.view.markdown
    repl.say(f"markdown {'on' if repl.view.markdown else 'off'}")


def _clear(repl: Repl, _: str) -> None:
    if not is_dumb_terminal():
        clear()


def _on_off(repl: Repl, argument: str) -> Iterable[str]:
    return ("on", "off")


def _names(repl: Repl, argument: str) -> Iterable[str]:
    return (command.name for command in COMMANDS)


COMMANDS = (
    Command("help", "[NAME]", "Lists the commands, or explains one.", "/help set", _help, _names),
    Command("exit", "", "Leaves, as Ctrl-D does. Every turn is saved already.", "/exit", _exit),
    Command("new", "", "Begins another conversation. Model, system message and settings stay.", "/new", talk.new),
    Command("undo", "", "Takes the last question and its answer back.", "/undo", talk.undo),
    Command("retry", "", "Asks the last question again. The answer takes the old one's place.", "/retry", talk.retry),
    Command("edit", "[TEXT]", "Changes the last question and asks it again.", "/edit What is a monad?", talk.edit),
    Command(
        "system", "[TEXT]", "Shows or sets the system message. `none` removes it.", "/system Be brief.", talk.system
    ),
    Command(
        "set", "[K [V]]", "Shows or changes settings. The value `default` resets one.", "/set temperature 0.2",
        talk.change_setting, talk.setting_values,
    ),
    Command("seed", "[N]", "Sets the seed, or shows the last answer's. `random` unsets it.", "/seed 42", talk.seed),
    Command(
        "model", "[NAME]", "Goes on with another model, or lists them.", "/model smollm2-135m-instruct",
        talk.model, talk.model_values,
    ),
    Command("save", "[NAME]", "Saves the conversation under a name.", "/save rome", talk.save),
    Command("load", "NAME", "Goes on with a saved conversation.", "/load rome", talk.load, talk.session_values),
    Command("sessions", "", "Lists saved conversations.", "/sessions", talk.list_sessions),
    Command("fork", "[NAME]", "Goes on in a copy. The conversation so far stays as it is.", "/fork plan-b", talk.fork),
    Command(
        "export", "md|json [F]", "Writes the conversation to a file or the screen.", "/export md chat.md",
        talk.export, talk.export_values,
    ),
    Command("copy", "", "Copies the last answer to the clipboard.", "/copy", _copy),
    Command("tokens", "[TEXT]", "Shows a text's tokens, or the last message's.", "/tokens Hello there", _tokens),
    Command("probs", "[on|off]", "Shades the answers to come by probability.", "/probs on", _probs, _on_off),
    Command("stats", "[on|off]", "Shows the figures of the last answer. `on`: after each.", "/stats", _stats, _on_off),
    Command("context", "", "Shows how full the context is.", "/context", _context),
    Command("markdown", "[on|off]", "Draws answers as Markdown, or as they are.", "/markdown off", _markdown, _on_off),
    Command("clear", "", "Clears the screen. The conversation stays; /new begins another.", "/clear", _clear),
)  # fmt: skip
