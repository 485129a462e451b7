"""The views of `gptcli tokenize`: which form each takes, with a heading where there are several texts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptcli.cli.json_records import json_line
from gptcli.cli.terminal.stdout import Sink
from gptcli.cli.terminal.tables import spelled
from gptcli.cli.terminal.token_flow import spell
from gptcli.cli.tokens import formats
from gptcli.cli.tokens.inputs import Conversations, Reading, where
from gptcli.errors import GptcliError
from gptcli.text.located_tokens import Token
from gptcli.text.token_statistics import Totals
from gptcli.text.tokenizer import Tokenizer


class Show:
    """Writes views of texts as one tokenizer sees them; `columns` is the terminal's width, None where there is none."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        reading: Reading,
        conversations: Conversations | None,
        sink: Sink,
        columns: int | None,
        *,
        colour: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._reading = reading
        self._conversations = conversations
        self._sink = sink
        self._columns = columns
        self._colour = colour

    def flow(self, names: Sequence[str | None]) -> None:
        """The default: running text on a terminal, a line a token elsewhere."""
        for name in self._headed(names):
            if self._columns is None:
                formats.write_parts(formats.lines(self._tokens(name)), self._sink)
            else:
                formats.write_flow(self._tokens(name), self._sink, self._columns, colour=self._colour)

    def table(self, names: Sequence[str | None]) -> None:
        """A row a token."""
        columns = self._columns if self._sink.is_terminal else None
        for name in self._headed(names):
            formats.write_parts(formats.table(self._tokens(name), self._tokenizer.piece, columns), self._sink)

    def tsv(self, names: Sequence[str | None]) -> None:
        """A row a token, between tabs."""
        for name in self._headed(names):
            formats.write_parts(formats.tsv(self._tokens(name)), self._sink)

    def ids(self, names: Sequence[str | None]) -> None:
        """The ids of each text on a line."""
        for name in names:
            gap = ""
            for _, ids in self._encoded(name):
                if ids:
                    self._sink.write((gap + " ".join(map(str, ids))).encode())
                    gap = " "
            self._sink.write(b"\n")

    def count(self, names: Sequence[str | None]) -> None:
        """How many tokens there are; of several texts, in each and in all."""
        counts = []
        for name in names:
            counts.append(sum(len(ids) for _, ids in self._encoded(name)))
            label = f"\t{where(name)}" if len(names) > 1 else ""
            self._sink.write(f"{counts[-1]}{label}\n".encode())
        if len(names) > 1:
            self._sink.write(f"{sum(counts)}\ttotal\n".encode())

    def json(self, names: Sequence[str | None]) -> None:
        """An object a text."""
        for name in names:
            totals = Totals(self._tokenizer.unknown_id)
            tokens = self._counted(self._tokens(name, totals), totals)
            formats.write_parts(formats.json_parts(name, tokens, totals.record), self._sink)

    def stats(self, names: Sequence[str | None], path: Path, *, as_json: bool) -> None:
        """Figures about each text."""
        context = _context(path)
        for name in names if as_json else self._headed(names):
            totals = Totals(self._tokenizer.unknown_id)
            for text, ids in self._encoded(name):
                totals.add_text(text)
                totals.add_ids(ids)
            record = totals.record()
            longest = totals.longest(self._tokenizer)
            if as_json:
                known = {} if context is None else {"context": context, "context_share": totals.tokens / context}
                surfaces = {id: self._tokenizer.surface(id) for id in longest}
                tokens = [
                    {"id": id, "token": data.decode("utf-8", "replace"), "bytes": data.hex()}
                    for id, data in surfaces.items()
                ]
                self._sink.write(json_line({"file": name, "stats": record, "longest": tokens, **known}))
                continue
            shown: dict[str, Any] = dict(record)
            shown["longest"] = " ".join(spell(self._tokenizer.surface(id)) for id in longest)
            if context is not None:
                shown["context"] = f"{100 * totals.tokens / context:.3g} % of {context}"
            for label, value in shown.items():
                value = "" if value is None else value  # a mean over no tokens
                wide = f"{label.replace('_', ' '):<16}  {spelled(value)}".rstrip()
                line = wide if self._sink.is_terminal else f"{label}\t{value}"
                self._sink.write(f"{line}\n".encode())

    def _headed(self, names: Sequence[str | None]) -> Iterator[str | None]:
        for index, name in enumerate(names):
            if len(names) > 1:
                self._sink.write(("\n" * (index > 0) + f"==> {where(name)} <==\n").encode())
            yield name

    def _tokens(self, name: str | None, totals: Totals | None = None) -> Iterable[Token]:
        if self._conversations is not None:
            tokens = self._conversations.tokens(self._tokenizer, name)
            if totals:
                totals.add_text(_text(tokens))
            return tokens
        return self._reading.tokens(self._tokenizer, name, self._read(name, totals))

    def _read(self, name: str | None, totals: Totals | None) -> Iterator[str]:
        for block in self._reading.blocks(name):
            if totals:
                totals.add_text(block)
            yield block

    def _counted(self, tokens: Iterable[Token], totals: Totals) -> Iterator[Token]:
        for token in tokens:
            totals.add_ids((token.id,))
            yield token

    def _encoded(self, name: str | None) -> Iterator[tuple[str, list[int]]]:
        """The text in parts, and the ids of each: the quick way, where nobody asks what they stand for."""
        if self._conversations is not None:
            tokens = self._conversations.tokens(self._tokenizer, name)
            yield _text(tokens), [token.id for token in tokens]
            return
        before, behind = self._tokenizer.surroundings if self._reading.add_special else ((), ())
        yield "", list(before)
        for part in self._reading.parts(self._tokenizer, name):
            yield part.text[part.lead :], part.ids
        yield "", list(behind)


def _text(tokens: Iterable[Token]) -> str:
    return b"".join(token.data for token in tokens).decode("utf-8", "replace")


def _context(path: Path) -> int | None:
    """The context of the model in a directory; None where there is only a tokenizer, or a model we cannot run."""
    from gptcli.checkpoint.folder import ModelFolder

    with contextlib.suppress(GptcliError):
        return ModelFolder.open(path).architecture.config.max_context
    return None
