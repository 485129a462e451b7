"""Adds tokens that other files name and tokenizer.json lacks, as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from gptcli.errors import BrokenTokenizer
from gptcli.files import is_there, read_json
from gptcli.model_notes import Note

if TYPE_CHECKING:
    from gptcli.text.fast_start.partial_tokenizer import Library

_MOST_ADDED = 1 << 20  # characters of all tokens
# The order in which transformers adds them.
_ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_Json = dict[str, Any]


@dataclass(frozen=True)
class _Named:
    """A token as a file names it. normalized: None if the file does not say: then True unless it is special."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    special: bool = False

    @property
    def complete(self) -> _Named:
        """The same with every field set."""
        return replace(self, normalized=not self.special) if self.normalized is None else self


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens. size: its model's pieces. id_of: gives the id of a piece or token. added: by id."""

    size: int
    id_of: Callable[[str], int | None]
    added: Mapping[int, _Named]


def read_settings(path: Path, notes: list[Note]) -> tuple[_Json, dict[str, int]]:
    """The settings in a model's directory, and the ids of added_tokens.json by token. Raises BrokenCheckpoint.

    Older files are read, and come first, if tokenizer_config.json has no `added_tokens_decoder`.
    """
    config, older, added = (
        read_json(path / name, notes=notes) if is_there(path / name) else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    if "additional_special_tokens" in config and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    if "added_tokens_decoder" in config:
        return config, {}
    match config.get("extra_special_tokens"), older.get("extra_special_tokens"):
        case list(listed), list(more):
            seen = set(map(_as_text, listed))
            older["extra_special_tokens"] = listed + [token for token in more if _as_text(token) not in seen]
    return config | older, added


def _as_text(token: object) -> str:
    return json.dumps(token, sort_keys=True, default=repr)


def with_named_tokens(
    library: Library, settings: Mapping[str, Any], added: Mapping[str, int], where: Path
) -> _Json | None:
    """A tokenizer.json with the tokens that settings and added_tokens.json name; None if it has them already.

    Raises BrokenTokenizer for contradictions.
    """
    present = {id: _as_named(token) for id, token in library.get_added_tokens_decoder().items()}
    known = Vocabulary(library.get_vocab_size(with_added_tokens=False), library.token_to_id, present)
    if (tokens := named_tokens(known, settings, added, where)) is None:
        return None
    state: _Json = json.loads(library.to_str())
    return state | {"added_tokens": tokens}


def named_tokens(
    vocabulary: Vocabulary, settings: Mapping[str, Any], added: Mapping[str, int], where: Path
) -> list[_Json] | None:
    """The `added_tokens` for `with_named_tokens`; None if nothing is to be added. Raises BrokenTokenizer."""
    roles, extra = _roles(settings, where), _extra(settings, where)
    # The special tokens of added_tokens.json. As in transformers, others become special later, but stay normalized.
    known = {*_roles({role: settings.get(role) for role in _ROLES if _is_plain(settings.get(role))}, where)}
    if "extra_special_tokens" in settings:
        known |= extra.keys()
    stated = _stated(settings, added, known, where)
    present = {token.content: token for token in vocabulary.added.values()}
    with_id = {token.content for token in stated.values()}
    wanted: dict[str, _Named] = {}
    for _, token in sorted(stated.items()):
        if token.content in present and (token.content in added or present[token.content] == token.complete):
            continue
        wanted[token.content] = replace(token, special=True) if token.content in roles else token
    for content, token in [*roles.items(), *extra.items()]:
        if content not in present and content not in with_id:
            wanted[content] = replace(token, special=token.special or content in roles)
    if (size := sum(map(len, wanted))) > _MOST_ADDED:
        raise BrokenTokenizer(f"cannot read: {where.parent}: the tokens of its settings have {size} characters")
    ids = _ids(vocabulary, wanted)
    for id, token in stated.items():
        own = ids.get(token.content, vocabulary.id_of(token.content))
        if own != id:
            where_from = "added_tokens.json" if added else "tokenizer_config.json"
            raise BrokenTokenizer(
                f"contradictory: {where}: the token {token.content[:40]!r} has the id {own}, and {id} in {where_from}"
            )
    if not wanted:
        return None
    by_id = {id: token for id, token in vocabulary.added.items() if token.content not in wanted}
    by_id |= {ids[content]: token.complete for content, token in wanted.items()}
    return [{"id": id, **asdict(token)} for id, token in sorted(by_id.items())]


def _stated(
    settings: Mapping[str, Any], added: Mapping[str, int], special: Collection[str], where: Path
) -> dict[int, _Named]:
    """The tokens that files name with an id. special: those of added_tokens.json that are special."""
    stated: dict[int, _Named] = {}
    decoder = settings.get("added_tokens_decoder", {})
    file = where.with_name("tokenizer_config.json")
    if not isinstance(decoder, dict):
        raise BrokenTokenizer(f"cannot read: {file}: its added_tokens_decoder is no object")
    for key, value in decoder.items():
        match value:
            case {"content": str(content), **flags} if is_id(key):
                stated[int(key)] = _parsed(content, flags, special=False, where=where)
            case _:
                raise BrokenTokenizer(f"cannot read: {file}: token {key[:40]!r} of added_tokens_decoder")
    for content, id in added.items():
        if type(id) is not int or id < 0 or id in stated:
            raise BrokenTokenizer(f"cannot read: {where.with_name('added_tokens.json')}: the id of {content[:40]!r}")
        stated[id] = _Named(content, normalized=content not in special, special=content in special)
    return stated


def is_id(key: str) -> bool:
    """Whether a key is a token's id."""
    return key.isdecimal() and key.isascii() and len(key) < 20


def _roles(settings: Mapping[str, Any], where: Path) -> dict[str, _Named]:
    """The tokens of roles, such as `eos_token`, by content."""
    named = [role for role in settings if role.endswith("_token") and role not in _ROLES]
    return _each([settings.get(role) for role in (*_ROLES, *named)], where, special=True)


def _extra(settings: Mapping[str, Any], where: Path) -> dict[str, _Named]:
    """The listed special tokens, by content."""
    extra = settings.get("extra_special_tokens", settings.get("additional_special_tokens"))
    values = [*extra.values()] if isinstance(extra, dict) else extra if isinstance(extra, list) else []
    return _each(values, where, special=isinstance(extra, dict))


def _is_plain(value: object) -> bool:
    """Whether a token is a string or an object without a type, as in older files."""
    return not isinstance(value, dict) or "__type" not in value


def _each(values: Iterable[object], where: Path, *, special: bool) -> dict[str, _Named]:
    """The tokens among values, by content; the last of equal ones. special: as for `_parsed`."""
    tokens: dict[str, _Named] = {}
    for value in values:
        match value:
            case str() if value:
                tokens[value] = _Named(value, special=True)
            case {"content": str(content), **flags} if content:
                tokens[content] = _parsed(content, flags, special=special, where=where)
    return tokens


def _parsed(content: str, flags: Mapping[Any, Any], *, special: bool, where: Path) -> _Named:
    """A token with the flags of its JSON object. special: makes it special whatever the flags."""
    flags = {key: flag for key, flag in flags.items() if key != "__type"}
    if not set(flags) <= set(_FLAGS) or not all(type(flag) is bool for flag in flags.values()):
        raise BrokenTokenizer(f"cannot read: {where.parent}: the token {content[:40]!r} of its tokenizer's settings")
    return replace(_Named(content, **flags), special=special or flags.get("special", False))


def _as_named(token: tokenizers.AddedToken) -> _Named:
    return _Named(token.content, **{flag: getattr(token, flag) for flag in _FLAGS})


def _ids(vocabulary: Vocabulary, wanted: Iterable[str]) -> dict[str, int]:
    """The ids that the library gives tokens, in order: their own, or new ones at the end."""
    following = max([vocabulary.size, *(id + 1 for id in vocabulary.added)])
    ids: dict[str, int] = {}
    for content in wanted:
        id = vocabulary.id_of(content)
        if id is None:
            id, following = following, following + 1
        ids[content] = id
    return ids
