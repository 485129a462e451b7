"""The tokenizer fields of a GGUF file, checked by reading them back: same tokens, same ids of hostile texts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from string import printable
from typing import Any
from unicodedata import normalize

from gptcli.errors import BrokenTokenizer, GptcliError, NoTemplate
from gptcli.gguf.pre_tokenizers import COMPOSES, IGNORES_MERGES, SPLITTERS
from gptcli.gguf.reader import GgufFile
from gptcli.gguf.tokenizer import gguf_tokenizer
from gptcli.gguf.tokenizer import stop_ids as gguf_stop_ids
from gptcli.model_notes import Note
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.tokenizer import Tokenizer
from gptcli.text.tokenizer_json import parse

# Values of tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_STOPS = ("eos", "eot", "eom")
# Besides ASCII: characters of every kind that a pre-tokenizer may treat in its own way.
_LETTERS = [*"éÉßſKǅʰ中あア한ا\u05d0ก\u0e31\u0301\u0903", "ll", "'ve", "\u2019s"]
_OTHERS = [*"²Ⅷ\u0663½\u00a0\u3000\u2028。、😀\u200d\ufe0f\x01\u00ad\ufffd", "  ", "\r\n", "123"]
_MORE = 20_000  # random ones after all pairs


def tokenizer_fields(path: Path, tokenizer: Tokenizer, stop_ids: Iterable[int], rows: int) -> dict[str, Any]:
    """The fields for a model's tokenizer with the chat template at `path`.

    stop_ids: ids that end a text, the likeliest first. rows: of the embedding; files have a token for each. Raises
    BrokenTokenizer for a tokenizer that files cannot have, or that would give other ids there.
    """
    state = json.loads(tokenizer.library.to_str())
    tokens, types = _tokens(tokenizer, state, rows)
    common = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, **_roles(tokenizer, stop_ids, rows)}
    try:
        template = ChatTemplate.of_model(path, tokenizer)
        common["tokenizer.chat_template"] = template.source
        if template.with_tools is not None:
            common["tokenizer.chat_template.tool_use"] = template.with_tools.source
    except NoTemplate:
        pass
    texts = [normalize("NFC", text) for text in _probes()]  # see `tokenizer_notes`
    wanted = [tokenizer.encode(text, add_special=False) for text in texts]
    reason = "no way of splitting texts that files know is its own"
    for candidate in _candidates(state, tokens):
        read = _read({**common, **candidate})
        reason = _difference(tokenizer, read, texts, wanted, rows) or ""
        if not reason:
            return {**common, **candidate}
    raise BrokenTokenizer(f"cannot write as GGUF: the tokenizer: {reason}")


def tokenizer_notes(tokenizer: Tokenizer, fields: Mapping[str, Any], stop_ids: Iterable[int]) -> list[Note]:
    """Notes on what a file's fields cannot say of a tokenizer, and on other tokens that end texts there."""
    own, read = {*tokenizer.stop_ids, *stop_ids}, {*gguf_stop_ids(_Fields(dict(fields)))}
    ends = (("texts end at these too in the file", read - own), ("texts do not end at these in the file", own - read))
    notes = [Note(what, tuple(tokenizer.piece(id) for id in sorted(ids))) for what, ids in ends if ids]
    composes = tokenizer.library.normalizer is not None and fields["tokenizer.ggml.model"] == "gpt2"
    if composes and fields["tokenizer.ggml.pre"] not in COMPOSES:
        notes.append(Note("the tokenizer composes characters (NFC), for which files have no field"))
    added = tokenizer.library.get_added_tokens_decoder().values()
    stripping = tuple(token.content for token in added if token.lstrip or token.rstrip or token.single_word)
    if stripping:
        notes.append(Note("in the file without what they strip around them, tokens such as", stripping))
    return notes


class _Fields(GgufFile):
    """A file of nothing but fields."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.path = Path("the GGUF file")
        self._read = set()
        self.fields, self.tensors = fields, {}


def _read(fields: dict[str, Any]) -> Tokenizer:
    return Tokenizer(*gguf_tokenizer(_Fields(fields)), Path("the GGUF file"))


def _tokens(tokenizer: Tokenizer, state: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """A token and its type for each row of the embedding."""
    tokens, types = [f"[PAD{id}]" for id in range(rows)], [_UNUSED] * rows
    added = tokenizer.library.get_added_tokens_decoder()
    unknown = state["model"].get("unk_token")
    for token, id in tokenizer.library.get_vocab(with_added_tokens=True).items():
        if id >= rows:
            if id not in added:
                raise BrokenTokenizer(f"cannot write as GGUF: token {id} has no row in the model")
            continue
        tokens[id] = token
        if id in added:
            types[id] = _CONTROL if added[id].special else _USER_DEFINED
        else:
            is_byte = state["model"].get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
            types[id] = _BYTE if is_byte else _NORMAL
        if token == unknown:
            types[id] = _UNKNOWN
    return tokens, types


def _roles(tokenizer: Tokenizer, stop_ids: Iterable[int], rows: int) -> dict[str, Any]:
    """The ids of tokens with a role, and which of them are added to texts."""
    before, after = tokenizer.surroundings
    if len(before) > 1 or len(after) > 1:
        raise BrokenTokenizer("cannot write as GGUF: the tokenizer adds more than one token at an end of a text")
    ids = {role: tokenizer.library.token_to_id(tokenizer.named_tokens.get(f"{role}_token", ""))
           for role in ("bos", "unk", "pad")}  # fmt: skip
    fields: dict[str, Any] = {
        "bos": before[0] if before else ids["bos"],
        "unknown": ids["unk"],
        "padding": ids["pad"],
        **dict(zip(_STOPS, dict.fromkeys([*after, *tokenizer.stop_ids, *stop_ids]), strict=False)),
    }
    return {
        **{f"tokenizer.ggml.{role}_token_id": id for role, id in fields.items() if id is not None and id < rows},
        "tokenizer.ggml.add_bos_token": bool(before),
        "tokenizer.ggml.add_eos_token": bool(after),
    }


def _candidates(state: Mapping[str, Any], tokens: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Fields that may describe the tokenizer, the likeliest first."""
    model = state["model"]
    if model["type"] != "BPE":
        raise BrokenTokenizer(f"cannot write as GGUF: a tokenizer of the kind {model['type']}; BPE can be written")
    merges = _merges(model)
    if model.get("byte_fallback"):
        scores = _scores(merges, tokens)
        for prefix in (True, False):
            yield {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.pre": "default",
                "tokenizer.ggml.scores": scores,
                "tokenizer.ggml.add_space_prefix": prefix,
            }
        return
    for pre in _pre_tokenizers(state, bool(model.get("ignore_merges"))):
        yield {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        }


def _scores(merges: Sequence[tuple[str, ...]], tokens: Sequence[str]) -> list[float]:
    """SentencePiece's scores, which order the merges: minus the rank of a token's first merge."""
    ranks: dict[str, int] = {}
    last = ""
    for rank, merge in enumerate(merges):
        token = "".join(merge)
        if token in ranks and token != last:
            raise BrokenTokenizer("cannot write as GGUF: the tokenizer: its merges are in no order of tokens")
        ranks.setdefault(token, rank)
        last = token
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _pre_tokenizers(state: Mapping[str, Any], ignores_merges: bool) -> Iterator[str]:
    """Names of pre-tokenizers that split a hostile text as the tokenizer does."""
    normalizer = state["normalizer"]
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise BrokenTokenizer(f"cannot write as GGUF: the tokenizer: a normalizer of type {normalizer['type']}")
    text = "".join(_probes())
    wanted, seen = _split(state["pre_tokenizer"], text), set[tuple[str, ...]]()
    composing_first = sorted(SPLITTERS.items(), key=lambda item: (item[0] in COMPOSES) != (normalizer is not None))
    for pre, regexes in composing_first:
        composes_alone = pre in COMPOSES and normalizer is None
        if not composes_alone and (pre in IGNORES_MERGES) == ignores_merges and regexes not in seen:
            seen.add(regexes)
            fields = {"model": "gpt2", "pre": pre, "tokens": ["a", "aa"], "token_type": [1, 1],
                      "merges": ["a a"], "add_bos_token": False}  # fmt: skip
            own, _ = gguf_tokenizer(_Fields({f"tokenizer.ggml.{name}": value for name, value in fields.items()}))
            if _split(own["pre_tokenizer"], text) == wanted:
                yield pre


def _split(pre_tokenizer: Mapping[str, Any] | None, text: str) -> list[str] | None:
    if pre_tokenizer is None:
        return None
    state = {"version": "1.0", "pre_tokenizer": pre_tokenizer, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    library = parse(json.dumps(state).encode())
    assert library.pre_tokenizer is not None
    return [piece for piece, _ in library.pre_tokenizer.pre_tokenize_str(text)]


def _probes() -> Iterator[str]:
    """Texts in which every kind of character follows every other."""
    kinds = [*printable, *_LETTERS, *_OTHERS]
    yield from ("", " ", "a", " a", "  a", "\n", "\n a", "A b", "12 345", "it's", "▁▁ ▁a")
    yield "".join(first + second for first, second in product(kinds, kinds))
    yield "".join(random.Random(0).choices(kinds, k=_MORE))


def _difference(
    ours: Tokenizer, read: Tokenizer, texts: Sequence[str], wanted: Sequence[Sequence[int]], rows: int
) -> str | None:
    """How the tokenizer that is read from the file differs, in words."""
    for id in range(min(ours.size, rows)):
        piece = ours.piece(id)
        if piece and (read.piece(id) != piece or read.token_bytes(id) != ours.token_bytes(id)):
            return f"token {id} would be {read.piece(id)!r}, not {piece!r}"
    for text, ids in zip(texts, wanted, strict=True):
        try:
            found = read.encode(text, add_special=False)
        except GptcliError as error:
            return error.message
        if found != ids:
            at = next((at for at, pair in enumerate(zip(found, ids, strict=False)) if len({*pair}) > 1), -1)
            return f"it would give other ids, such as for {ours.decode(ids[max(at - 1, 0) : at + 2])!r}"
    if ours.library.model.byte_fallback and _ranked(ours) != _ranked(read):
        return "its merges are not those that scores give"
    return None


def _ranked(tokenizer: Tokenizer) -> list[tuple[str, list[tuple[str, ...]]]]:
    """The pairs that make each token, in the order of the tokens."""
    merges = _merges(json.loads(tokenizer.library.to_str())["model"])
    return [(token, sorted(pairs)) for token, pairs in groupby(merges, key="".join)]


def _merges(model: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
