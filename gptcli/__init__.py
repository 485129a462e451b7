"""Local text generation: `lm = gptcli.load()`, then `lm.generate("In a small town")`.

Importing this costs nothing; torch is imported when a model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptcli.version import VERSION as __version__

if TYPE_CHECKING:
    from gptcli.chat.session import Session, TurnsDropped
    from gptcli.errors import GptcliError
    from gptcli.generation.events import Completed, Finished, TextDelta
    from gptcli.generation.request import Request
    from gptcli.language_model import LanguageModel, load
    from gptcli.scheduler import Scheduler
    from gptcli.settings import ChatSettings, ConstraintConfig, SamplingConfig, StopConfig
    from gptcli.text.chat_templates.chat_template import ChatTemplate
    from gptcli.text.messages import Message
    from gptcli.tools.definitions import ToolCall

__all__ = [
    "ChatSettings",
    "ChatTemplate",
    "Completed",
    "ConstraintConfig",
    "Finished",
    "GptcliError",
    "LanguageModel",
    "Message",
    "Request",
    "SamplingConfig",
    "Scheduler",
    "Session",
    "StopConfig",
    "TextDelta",
    "ToolCall",
    "TurnsDropped",
    "__version__",
    "load",
]

_HOME = {
    "ChatSettings": "gptcli.settings",
    "ChatTemplate": "gptcli.text.chat_templates.chat_template",
    "Completed": "gptcli.generation.events",
    "ConstraintConfig": "gptcli.settings",
    "Finished": "gptcli.generation.events",
    "GptcliError": "gptcli.errors",
    "LanguageModel": "gptcli.language_model",
    "Message": "gptcli.text.messages",
    "Request": "gptcli.generation.request",
    "SamplingConfig": "gptcli.settings",
    "Scheduler": "gptcli.scheduler",
    "Session": "gptcli.chat.session",
    "StopConfig": "gptcli.settings",
    "TextDelta": "gptcli.generation.events",
    "ToolCall": "gptcli.tools.definitions",
    "TurnsDropped": "gptcli.chat.session",
    "load": "gptcli.language_model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gptcli' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
