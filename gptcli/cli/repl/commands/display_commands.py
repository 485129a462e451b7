"""Slash commands that show something, or change how answers are shown. `command_table.py` lists them."""

from __future__ import annotations

from prompt_toolkit import shortcuts

from gptcli.cli.repl.commands.slash_command import ReplControls, find, parse_switch
from gptcli.cli.terminal.capabilities import is_dumb_terminal, uses_colour
from gptcli.cli.terminal.columns import hanging, terminal_columns
from gptcli.cli.terminal.token_flow import TokenFlow, grouped
from gptcli.errors import UsageError

_WIDE = 60  # columns that commands with their arguments take, and what they do beside them

_KEYS = (
    ("Enter", "sends"),
    ("Alt-Enter, Ctrl-J", 'begins a line in the message; """ begins and ends many lines'),
    ("Ctrl-C", "stops an answer; clears what is typed"),
    ("Ctrl-D", "leaves"),
    ("Up, Ctrl-R", "go back to what was typed before, search it"),
    ("Tab", "completes commands, settings, models, sessions, paths"),
    ("Ctrl-X Ctrl-E", "opens the message in an editor"),
)


def help(repl: ReplControls, name: str) -> None:
    """Lists the commands, or explains one."""
    if name:
        command = find(name.removeprefix("/"), repl.commands)
        also = f"\n  also: {' '.join(f'/{alias}' for alias in command.aliases)}" if command.aliases else ""
        repl.say(f"{command.usage}\n  {command.help}\n  example: {command.example}{also}")
        return
    columns = terminal_columns()
    narrow = columns < _WIDE  # then arguments are left to `/help NAME`
    rows = [(f"/{command.name}" if narrow else command.usage, command.summary) for command in repl.commands]
    for table in (rows, (("", ""),), _KEYS):
        start = max(len(names) for names, _ in (table if narrow else (*rows, *_KEYS))) + 2
        for names, about in table:
            repl.draw(hanging(f"{names:{start}}", about, columns).rstrip() + "\n")


def tokens(repl: ReplControls, text: str) -> None:
    """Shows the tokens of a text or of the last message."""
    if not text and not repl.session.messages:
        raise UsageError("there is nothing yet", hint="/tokens TEXT shows those of a text")
    tokenizer = repl.session.lm.tokenizer
    ids = tokenizer.encode(text or repl.session.messages[-1].content)
    flow = TokenFlow(terminal_columns(), colour=uses_colour(True))
    groups = grouped((tokenizer.token_bytes(id), tokenizer.is_control(id)) for id in ids)
    repl.draw("".join(map(flow.add, groups)) + flow.end())
    repl.say(f"{len(ids)} tokens")


def probabilities(repl: ReplControls, switch: str) -> None:
    """Turns shading by probability on or off."""
    repl.display.probabilities = parse_switch(switch) if switch else not repl.display.probabilities
    repl.say(f"answers are {'shaded by probability' if repl.display.probabilities else 'not shaded'} from now on")


def stats(repl: ReplControls, switch: str) -> None:
    """Shows the figures of the last answer; `on` shows them after each answer, `off` does not."""
    if switch:
        repl.display.stats = parse_switch(switch)
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
    completion_tokens = sum(answer.usage.completion_tokens for answer in finished)
    seconds = sum(answer.usage.decode_s for answer in finished)
    answers = "1 answer" if len(finished) == 1 else f"{len(finished)} answers"
    repl.say(f"so far   {answers}, {completion_tokens} tokens in {seconds:.1f} s; loaded in {last.load_s:.1f} s")


def markdown(repl: ReplControls, switch: str) -> None:
    """Turns Markdown on or off."""
    repl.display.markdown = parse_switch(switch) if switch else not repl.display.markdown
    repl.say(f"markdown {'on' if repl.display.markdown else 'off'}")


def clear(repl: ReplControls, _: str) -> None:
    """Clears the screen."""
    if not is_dumb_terminal():
        shortcuts.clear()
    repl.say("the conversation goes on; /new begins another")  # in other programs /clear begins one
