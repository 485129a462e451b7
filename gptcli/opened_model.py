"""A model's files opened: its config, tokenizer, chat template and defaults. No weights, no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.generation_config import generation_notes, generation_source, sampling_defaults
from gptcli.errors import BrokenCheckpoint, UsageError
from gptcli.model_notes import Note
from gptcli.models.catalog import fingerprint
from gptcli.models.stores import StoreSettings
from gptcli.settings import RuntimeConfig, SamplingConfig, StopConfig
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.tokenizer import Tokenizer


def context_size(folder: ModelFolder, runtime: RuntimeConfig, store: StoreSettings) -> int:
    """Tokens of the context: as asked for, else the store's or the model's. Raises UsageError if it is too long."""
    most = folder.architecture.config.max_context
    asked = runtime.ctx_size or min(store.context or most, most)
    if asked > most:
        raise UsageError(f"ctx-size {asked} is beyond the model's context of {most}")
    return asked


class OpenedModel:
    """All that is known of a model before its weights are read."""

    def __init__(
        self, name: str, folder: ModelFolder, runtime: RuntimeConfig, store: StoreSettings, ctx_size: int
    ) -> None:
        """Opens the tokenizer. name: what the model was asked for by. Raises InvalidModel."""
        self.name, self.folder, self.runtime, self.store, self.ctx_size = name, folder, runtime, store, ctx_size
        self.tokenizer = Tokenizer.open(folder.path, folder.gguf.file if folder.gguf else None)
        self.tokenizer.limit(folder.architecture.config.vocab_size)

    @property
    def notes(self) -> list[Note]:
        """Notes on what of the model's files has no effect here, or is unusual."""
        where, fields = generation_source(self.folder)
        context = self.folder.architecture.config.max_context
        return [
            *self.folder.notes,
            *generation_notes(fields, where, context),
            *self.tokenizer.notes,
            *self._store_notes,
        ]

    @property
    def _store_notes(self) -> Iterator[Note]:
        if self.store.not_done:
            yield Note("not done, though Ollama's parameters ask for it", self.store.not_done)
        if self.store.go_template and "chat_template" not in self.tokenizer.settings:
            yield Note("Ollama's chat template is Go's and not read, and the file has none: --chat-template gives one")

    @cached_property
    def sampling_defaults(self) -> dict[str, Any]:
        """Sampling defaults that the model, or its store, brings. Raises BrokenCheckpoint."""
        where, fields = generation_source(self.folder)
        defaults = sampling_defaults(fields, where) | self.store.sampling
        try:
            SamplingConfig.resolve({}, defaults)
        except UsageError as error:
            raise BrokenCheckpoint(f"{self.name}: Ollama's parameters: {error.message}") from None
        return defaults

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template that the model brings. Raises TemplateError where there is none."""
        return ChatTemplate.of_model(self.folder.path, self.tokenizer)

    @property
    def reference(self) -> str:
        """What finds this model again from wherever: a name, or an absolute path."""
        path = os.path.expanduser(self.name)
        return os.path.abspath(path) if os.path.exists(path) else self.name

    @cached_property
    def fingerprint(self) -> str:
        """Tells this model from any other; stored with replies. See `models.catalog.fingerprint`."""
        own = fingerprint(self.folder.path)
        adapters = [(fingerprint(Path(path)), weight) for path, weight in self.runtime.adapters]
        return hashlib.sha256(repr([own, adapters]).encode()).hexdigest() if adapters else own

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that config, generation config, tokenizer or store name as the end."""
        ids = map(self.tokenizer.control_tokens.ids.get, self.store.stop)
        of_store = frozenset(id for id in ids if id is not None)
        return of_store.union(self.tokenizer.stop_ids, *self.folder.stop_ids.values())

    def stopping(self, asked: StopConfig) -> StopConfig:
        """`asked` with its stop texts, else with those of the store that are no control tokens."""
        if asked.strings:
            return asked
        ids = self.tokenizer.control_tokens.ids
        return replace(asked, strings=tuple(text for text in self.store.stop if text not in ids))
