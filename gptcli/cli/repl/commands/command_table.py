"""The table of slash commands: a new command is a row here and a function in one of the two modules beside it."""

from __future__ import annotations

from collections.abc import Iterable

from gptcli.cli.repl.commands import conversation_commands as chat
from gptcli.cli.repl.commands import display_commands as show
from gptcli.cli.repl.commands import tab_completion as complete
from gptcli.cli.repl.commands.slash_command import Command
from gptcli.cli.repl.exports import FORMS


def _command_names(argument: str) -> Iterable[str]:
    return (command.name for command in COMMANDS)


COMMANDS = (
    Command("help", "[NAME]", "Lists the commands, or explains one.", "/help set", show.help, _command_names,
            ("?",)),
    Command("exit", "", "Leaves, as Ctrl-D does. Every turn is saved already.", "/exit", chat.exit,
            aliases=("quit", "q", "bye")),
    Command("new", "", "Begins another conversation. Model, system message and settings stay.", "/new", chat.new),
    Command("undo", "", "Takes the last question and its answer back.", "/undo", chat.undo),
    Command("retry", "", "Asks the last question again. The answer takes the old one's place.", "/retry", chat.retry,
            aliases=("regen", "regenerate")),
    Command("edit", "[TEXT]", "Changes the last question and asks it again.", "/edit What is a monad?", chat.edit),
    Command(
        "read", "FILE [TEXT]", "Sends a file, with a question after it.", "/read notes.md Sum this up.",
        chat.read_file, complete.paths, aliases=("file",),
    ),
    Command(
        "system", "[TEXT]", "Shows or sets the system message. `none` removes it.", "/system Be brief.", chat.system
    ),
    Command(
        "set", "[K [V]]", "Shows or changes settings. The value `default` resets one.", "/set temperature 0.2",
        chat.change_setting, complete.settings,
    ),
    Command(
        "tools", "[FILE]", "Lists what the model may call, or takes it from a file. `none` for nothing.",
        "/tools weather.json", chat.tools, complete.paths,
    ),
    Command("seed", "[N]", "Sets the seed, or shows the last answer's. `random` unsets it.", "/seed 42", chat.seed),
    Command(
        "model", "[NAME]", "Goes on with another model, or lists them.", "/model smollm2-135m-instruct",
        chat.model, complete.models,
    ),
    Command("save", "[NAME]", "Saves the conversation under a name.", "/save rome", chat.save),
    Command("rename", "NAME", "Gives the conversation another name.", "/rename rome", chat.rename),
    Command(
        "delete", "[NAME]", "Deletes a saved conversation, or this one.", "/delete rome",
        chat.delete, complete.sessions,
    ),
    Command("load", "NAME", "Goes on with a saved conversation.", "/load rome", chat.load, complete.sessions),
    Command("sessions", "", "Lists saved conversations.", "/sessions", chat.list_sessions),
    Command("fork", "[NAME]", "Goes on in a copy. The conversation so far stays as it is.", "/fork plan-b", chat.fork),
    Command(
        "export", "FILE|FORM", "Writes the conversation to a file or the screen. The file's ending tells the form: "
        f"{', '.join(FORMS)}.", "/export chat.md", chat.export, complete.exports,
    ),
    Command("copy", "[code]", "Copies the last answer, or its code, to the clipboard.", "/copy code",
            chat.copy_answer, lambda argument: ("code",)),
    Command("tokens", "[TEXT]", "Shows a text's tokens, or the last message's.", "/tokens Hello there", show.tokens),
    Command(
        "probs", "[on|off]", "Shades the answers to come by probability.", "/probs on",
        show.probabilities, complete.on_off,
    ),
    Command(
        "stats", "[on|off]", "Shows the figures of the last answer. `on`: after each.", "/stats",
        show.stats, complete.on_off,
    ),
    Command("context", "", "Shows how full the context is.", "/context", chat.context),
    Command(
        "markdown", "[on|off]", "Draws answers as Markdown, or as they are.", "/markdown off",
        show.markdown, complete.on_off,
    ),
    Command("clear", "", "Clears the screen. The conversation stays; /new begins another.", "/clear", show.clear),
)  # fmt: skip
