"""The template that `--chat-template` names: a file, or one of a model's own."""

from __future__ import annotations

import os
from pathlib import Path

from gptcli.cli.prompt_input import Decoding, read_text
from gptcli.errors import InputError, NoTemplate
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.tokenizer import Tokenizer


def chosen_template(given: Path, model: Path, tokenizer: Tokenizer, decoding: Decoding) -> ChatTemplate:
    """A chat template from a file; without one of that name, the model's template of that name. Raises InputError."""
    if not os.path.lexists(given):
        try:
            return ChatTemplate.of_model(model, tokenizer, str(given))
        except NoTemplate as error:
            raise InputError(f"cannot open: {given}: no such file; {error.message}") from None
    return ChatTemplate(read_text(given, decoding), str(given))
