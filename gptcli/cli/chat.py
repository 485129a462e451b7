"""`gptcli chat`: a conversation."""

from __future__ import annotations

from gptcli.cli import options
from gptcli.cli.answer import View
from gptcli.cli.render import Activity
from gptcli.language_model import LanguageModel
from gptcli.session import Session
from gptcli.settings import RuntimeConfig
from gptcli.store.catalog import DEFAULT_MODEL
from gptcli.store.sessions import SessionFile


def chat(model: options.Model = DEFAULT_MODEL) -> None:
    """Chat."""
    from gptcli.cli.repl import Repl

    with Activity(quiet=False) as activity:
        lm = LanguageModel.open(model, RuntimeConfig(), on_fetch=activity.fetch)
    session = Session(lm)
    file = SessionFile()
    session.keep_in(file)
    Repl(session, file, View(), offline=False).run()
