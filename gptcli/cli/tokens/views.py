"""The views of `gptcli tokenize`: each text in one format, with a heading if there are several texts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.cli.json_records import json_line
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.terminal.tables import spelled
from gptcli.cli.terminal.token_flow import spell
from gptcli.cli.tokens import formats
from gptcli.cli.tokens.inputs import ConversationReader, TextReader, from_start_of_file, input_name
from gptcli.cli.tokens.statistics import Totals
from gptcli.errors import GptcliError
from gptcli.text.located_tokens import Token
from gptcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenViews:
    """Writes the tokens of texts or conversations. columns: the terminal's width; None without one."""

    tokenizer: Tokenizer
    reader: TextReader
    conversations: ConversationReader | None
    sink: StdoutSink
    columns: int | None
    colour: bool

    def flow(self, names: Sequence[str | None]) -> None:
        """The default: running text on a terminal, a line a token elsewhere."""
        for name in self._headed(names):
            if self.columns is None:
                formats.write_pieces(formats.lines(self._tokens(name)), self.sink)
            else:
                formats.write_flow(self._tokens(name), self.sink, self.columns, colour=self.colour)

    def table(self, names: Sequence[str | None]) -> None:
        """A row a token."""
        columns = self.columns if self.sink.is_terminal else None
        for name in self._headed(names):
            formats.write_pieces(formats.table(self._tokens(name), self.tokenizer.piece, columns), self.sink)

    def tsv(self, names: Sequence[str | None]) -> None:
        """A row a token, tab-separated."""
        for name in self._headed(names):
            formats.write_pieces(formats.tsv(self._tokens(name)), self.sink)

    def ids(self, names: Sequence[str | None]) -> None:
        """The ids of each text on a line."""
        for name in names:
            gap = ""
            for _, ids in self._encoded(name):
                if ids:
                    self.sink.write((gap + " ".join(map(str, ids))).encode())
                    gap = " "
            self.sink.write(b"\n")

    def count(self, names: Sequence[str | None]) -> None:
        """The number of tokens of each text, and of several texts together."""
        counts = []
        for name in names:
            counts.append(sum(len(ids) for _, ids in self._encoded(name)))
            label = f"\t{input_name(name)}" if len(names) > 1 else ""
            self.sink.write_names(f"{counts[-1]}{label}\n")
        if len(names) > 1:
            self.sink.write(f"{sum(counts)}\ttotal\n".encode())

    def json(self, names: Sequence[str | None]) -> None:
        """An object a text."""
        for name in names:
            totals = Totals(self.tokenizer.unknown_id)
            tokens = self._counted(self._tokens(name, totals), totals)
            formats.write_pieces(formats.json_pieces(name, tokens, totals.record), self.sink)

    def stats(self, names: Sequence[str | None], path: Path, *, as_json: bool) -> None:
        """Figures about each text."""
        context = _context(path)
        for name in names if as_json else self._headed(names):
            totals = Totals(self.tokenizer.unknown_id)
            for text, ids in self._encoded(name):
                totals.add_text(text)
                totals.add_ids(ids)
            record = totals.record()
            longest = totals.longest(self.tokenizer)
            if as_json:
                known = {} if context is None else {"context": context, "context_share": totals.tokens / context}
                surfaces = {id: self.tokenizer.surface(id) for id in longest}
                tokens = [
                    {"id": id, "token": data.decode("utf-8", "replace"), "bytes": data.hex()}
                    for id, data in surfaces.items()
                ]
                self.sink.write(json_line({"file": name, "stats": record, "longest": tokens, **known}))
                continue
            shown: dict[str, Any] = dict(record)
            shown["longest"] = " ".join(spell(self.tokenizer.surface(id)) for id in longest)
            if context is not None:
                shown["context"] = f"{100 * totals.tokens / context:.3g} % of {context}"
            for label, value in shown.items():
                value = "" if value is None else value  # a mean over no tokens
                wide = f"{label.replace('_', ' '):<16}  {spelled(value)}".rstrip()
                line = wide if self.sink.is_terminal else f"{label}\t{value}"
                self.sink.write(f"{line}\n".encode())

    def _headed(self, names: Sequence[str | None]) -> Iterator[str | None]:
        for index, name in enumerate(names):
            if len(names) > 1:
                self.sink.write_names("\n" * (index > 0) + f"==> {input_name(name)} <==\n")
            yield name

    def _tokens(self, name: str | None, totals: Totals | None = None) -> Iterable[Token]:
        if self.conversations is not None:
            conversation = self.conversations.tokens(self.tokenizer, name)
            if totals:
                totals.add_text(_text(conversation))
            return conversation
        blocks = self.reader.blocks(name)
        tokens = self.reader.tokens(self.tokenizer, name, self._read(blocks, totals))
        return from_start_of_file(tokens, blocks)

    def _read(self, blocks: Iterator[str], totals: Totals | None) -> Iterator[str]:
        for block in blocks:
            if totals:
                totals.add_text(block)
            yield block

    def _counted(self, tokens: Iterable[Token], totals: Totals) -> Iterator[Token]:
        for token in tokens:
            totals.add_ids((token.id,))
            yield token

    def _encoded(self, name: str | None) -> Iterator[tuple[str, list[int]]]:
        """The text in chunks with their ids: the quick way, without the bytes of each token."""
        if self.conversations is not None:
            tokens = self.conversations.tokens(self.tokenizer, name)
            yield _text(tokens), [token.id for token in tokens]
            return
        prefix, suffix = self.tokenizer.surroundings if self.reader.add_special else ((), ())
        yield "", list(prefix)
        for chunk in self.reader.chunks(self.tokenizer, name):
            yield chunk.text[chunk.lead :], chunk.ids
        yield "", list(suffix)


def _text(tokens: Iterable[Token]) -> str:
    return b"".join(token.data for token in tokens).decode("utf-8", "replace")


def _context(path: Path) -> int | None:
    """The context of the model in a directory; None without a model that gptcli can run."""
    from gptcli.checkpoint.folder import ModelFolder

    with contextlib.suppress(GptcliError):
        return ModelFolder.open(path).architecture.config.max_context
    return None
