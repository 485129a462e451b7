"""Builds tokenizers as transformers' classes do: vocabulary and merges, with the class's own components.

Most classes take from a tokenizer.json only its model's vocabulary and merges, its added tokens and its post-processor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gptcli.errors import BrokenCheckpoint, BrokenTokenizer
from gptcli.files import is_there, parse_json, read_json
from gptcli.gguf.pre_tokenizers import SPLITTERS, split_by
from gptcli.text.tokenizer_files.named_tokens import Vocabulary, named_tokens

_Json = dict[str, Any]

# The classes of model types whose files name none; "": transformers reads tokenizer.json unchanged.
_CLASS_OF_TYPE = {
    type: name
    for name, types in {
        "CohereTokenizer": "aya_vision cohere cohere2",
        "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text",
        "GPT2Tokenizer": "codegen gpt2 gpt_neo gptj opt phi starcoder2",
        "GPTNeoXTokenizer": "gpt_neox mamba2 mpt olmo olmoe",
        "LlamaTokenizer": "idefics2",
        "OpenAIGPTTokenizer": "openai-gpt",
        "Qwen2Tokenizer": "internvl lighton_ocr ovis2 qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_next "
        "qwen3_vl qwen3_vl_moe",
        "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text",
        "XGLMTokenizer": "xglm",
        "": "ernie4_5 ernie4_5_moe flex_olmo glm glm4 glm4_moe glm4_moe_lite glm4v glm4v_moe got_ocr2 "
        "gpt_bigcode granite granitemoe granitemoehybrid granitemoeshared kimi_k25 llava llava_next "
        "minicpm3 minimax_m2 ministral ministral3 mistral mistral3 mixtral nemotron olmo2 olmo3 phi3 phimoe "
        "smolvlm stablelm vipllava",
    }.items()
    for type in types.split()
}
# Types that have this class whatever class a model names.
_ALWAYS_OWN_CLASS = ("qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text")
_GENERIC = frozenset({"PreTrainedTokenizer", "TokenizersBackend", "BloomTokenizer", "FNetTokenizer"})
# Classes with components of their own that are not built here.
_OTHER_CLASSES = frozenset(
    f"{name}Tokenizer"
    for name in """
    Albert Bart Barthez Bartpho Bert BertGeneration BertJapanese Bertweet BigBird BioGpt Blenderbot BlenderbotSmall ByT5
    CLIP CTRL Camembert Canine Clvp Cpm CpmAnt DPRQuestionEncoder Deberta DebertaV2 Dia Esm Esmc FSMT Flaubert Funnel
    GPTNeoXJapanese GPTSw3 Herbert LED Lasr LayoutLMv2 LayoutLMv3 LayoutXLM Luke Lxmert M2M100 MBart MBart50 MLuke
    MPNet Marian MarkupLM Mgpstr MobileBert Mvp MyT5 Nllb Nougat PLBart Pegasus Perceiver Phobert ProphetNet Rag
    Reformer RemBert RoCBert RoFormer Roberta SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter T5 Tapas Tipsv2
    Udop VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper XGLM XLM XLMRoberta XLNet
    """.split()
)

_BYTE_LEVEL: _Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_NFC: _Json = {"type": "NFC"}
_BPE_DEFAULTS = {"unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""} | dict.fromkeys(
    ("fuse_unk", "byte_fallback", "ignore_merges"), False
)


def _byte_level(settings: Mapping[str, Any], *, normalizer: _Json | None = None, before: _Json | None = None) -> _Json:
    """Byte-level BPE. before: a first pre-tokenizer; one of type Split replaces GPT-2's regular expression."""
    spelled = _BYTE_LEVEL | {"add_prefix_space": settings.get("add_prefix_space") is True}
    splitter = spelled
    if before is not None:
        spelled = spelled | {"use_regex": before["type"] != "Split"}
        splitter = {"type": "Sequence", "pretokenizers": [before, spelled]}
    model = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    return {"normalizer": normalizer, "pre_tokenizer": splitter, "decoder": _BYTE_LEVEL, "model": model}


def _llama(settings: Mapping[str, Any], *, code: bool = False) -> _Json:
    prefix = settings.get("add_prefix_space") is not False
    legacy = bool(settings.get("legacy")) and not code
    scheme = ("always" if legacy else "first") if prefix else "never"
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": sentencepiece_decoder(byte_fallback=True, strip=prefix or code),
        "model": {"fuse_unk": True, "byte_fallback": True, "unk_token": _content(settings, "unk") if code else None},
    }


def _gemma(settings: Mapping[str, Any]) -> _Json:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": split,
        "decoder": sentencepiece_decoder(byte_fallback=True, strip=False),
        "model": {"fuse_unk": True, "byte_fallback": True, "unk_token": _content(settings, "unk")},
    }


def _openai_gpt(settings: Mapping[str, Any]) -> _Json:
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    return {
        "normalizer": bert | {"lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": {
            "end_of_word_suffix": "</w>",
            "continuing_subword_prefix": "",
            "unk_token": _content(settings, "unk"),
        },
    }


def sentencepiece_decoder(*, byte_fallback: bool, strip: bool) -> _Json:
    """The decoder of pieces in which `▁` is a space. strip: drops a text's first space."""
    decoders: list[_Json] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    if byte_fallback:
        decoders.append({"type": "ByteFallback"})
    if byte_fallback or strip:
        decoders.append({"type": "Fuse"})
    if strip:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": decoders}


@dataclass(frozen=True)
class _Class:
    """A class of transformers. roles: its default tokens by role.

    components: makes normalizer, pre-tokenizer, decoder and the fields of its BPE from settings. file: read where there
    is no tokenizer.json. own_ends: whether settings, and not tokenizer.json, say what is added around a text.
    """

    roles: _Json
    components: Callable[[Mapping[str, Any]], _Json]
    file: str = "vocab.json"
    own_ends: bool = False


_END = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_QWEN_END = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_INFILLING = {
    "prefix_token": "▁<PRE>",
    "middle_token": "▁<MID>",
    "suffix_token": "▁<SUF>",
    "eot_token": "▁<EOT>",
    "fill_token": "<FILL_ME>",
}
_GEMMA = {role: f"<{role.removesuffix('_token')}>" for role in (*_LLAMA, "pad_token", "mask_token")}
_COHERE = {"unk_token": "<UNK>", "bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"} | {
    "pad_token": "<PAD>",
    "cls_token": "<CLS>",
    "sep_token": "<SEP>",
    "mask_token": "<MASK_TOKEN>",
}
_DIGITS = {"type": "Digits", "individual_digits": True}
_CLASSES = {
    "GPT2Tokenizer": _Class(_END, _byte_level),
    "CodeGenTokenizer": _Class(_END, _byte_level),
    "GPTNeoXTokenizer": _Class(
        _END | {"pad_token": "<|padding|>"}, partial(_byte_level, normalizer=_NFC), own_ends=True
    ),
    "Qwen2Tokenizer": _Class(_QWEN_END, partial(_byte_level, normalizer=_NFC, before=split_by(*SPLITTERS["qwen2"]))),
    "Qwen3_5Tokenizer": _Class(_QWEN_END, partial(_byte_level, normalizer=_NFC, before=split_by(*SPLITTERS["qwen35"]))),
    "CohereTokenizer": _Class(_COHERE, partial(_byte_level, normalizer=_NFC, before=_DIGITS), file=""),
    "OpenAIGPTTokenizer": _Class({"unk_token": "<unk>"}, _openai_gpt),
    "LlamaTokenizer": _Class(_LLAMA, _llama, "tokenizer.model"),
    "CodeLlamaTokenizer": _Class(_LLAMA | _INFILLING, partial(_llama, code=True), "tokenizer.model", own_ends=True),
    "GemmaTokenizer": _Class(_GEMMA, _gemma, "tokenizer.model"),
}


def class_of(path: Path, settings: Mapping[str, Any], *, byte_level: bool = False) -> str | None:
    """The class that transformers uses for a directory; None if it reads tokenizer.json unchanged.

    byte_level: whether tokenizer.json is byte-level, which LlamaTokenizer is not. Raises BrokenCheckpoint.
    """
    file = path / "config.json"
    config = read_json(file, notes=[], contradictions=True) if is_there(file) else {}
    model_type = config.get("model_type")
    own = _CLASS_OF_TYPE.get(model_type) if isinstance(model_type, str) else None
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = str(named).removesuffix("Fast") if named else own
    auto_map = settings.get("auto_map")
    has_code = isinstance(auto_map, list) or (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map)
    if model_type in _ALWAYS_OWN_CLASS:
        return own
    if not has_code and (own == "" or (byte_level and name == "LlamaTokenizer")):
        return None
    return None if name in _GENERIC else name or None


def is_class(name: str) -> bool:
    """Whether transformers has this class, with components of its own."""
    return name in _CLASSES or name in _OTHER_CLASSES


def class_without_tokenizer_json(path: Path, settings: Mapping[str, Any], file: str) -> str | None:
    """As `class_of`, for a directory without tokenizer.json. Raises BrokenTokenizer for a class not made of `file`.

    None: a tokenizer.model without a named class, which transformers reads as SentencePiece does.
    """
    name = class_of(path, settings)
    if name is None and file == "tokenizer.model":
        return None
    if name is None or name not in _CLASSES or _CLASSES[name].file != file:
        known = ", ".join(known for known, made in _CLASSES.items() if made.file == file)
        raise BrokenTokenizer(
            f"not supported: {path / file}: a tokenizer of class {name or 'unknown'} without tokenizer.json",
            hint=f"known are {known}; AutoTokenizer.from_pretrained and save_pretrained of transformers write "
            "tokenizer.json for others",
        )
    return name


def with_roles(name: str, settings: Mapping[str, Any]) -> _Json:
    """Settings with a class's default tokens."""
    settings = _CLASSES[name].roles | dict(settings)
    if name == "CodeLlamaTokenizer":
        settings.setdefault("add_bos_token", True)
        if "extra_special_tokens" not in settings:
            given = [
                default if isinstance(settings[role], str) else settings[role] for role, default in _INFILLING.items()
            ]
            listed = settings.get("additional_special_tokens", [])
            settings["extra_special_tokens"] = [*listed, *(token for token in given if token is not None)]
    return _without_token_flags(settings) if name == "Qwen2Tokenizer" else settings


def built(
    name: str, settings: Mapping[str, Any], vocabulary: Mapping[str, int], merges: Sequence[object], file: Path
) -> _Json:
    """A tokenizer.json as a class builds it, with no added tokens. Raises BrokenTokenizer.

    settings: from `with_roles`. file: names the vocabulary in errors.
    """
    components = _CLASSES[name].components(settings)
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, **components.pop("model")}
    around = tokens_around(settings, vocabulary, file)
    return {**components, "post_processor": around, "model": model}


@dataclass(frozen=True)
class Rebuilt:
    """A tokenizer.json as a class rebuilds it. settings, added: as from `read_settings`.

    data: the original bytes if the class changes nothing, else `state`. state: the parsed result. unread: the
    original's components that the class replaces.
    """

    data: bytes | _Json
    state: _Json
    settings: _Json
    added: dict[str, int]
    unread: tuple[str, ...]


def rebuilt_by(
    name: str, data: bytes, settings: Mapping[str, Any], added: Mapping[str, int], file: Path
) -> Rebuilt | None:
    """A tokenizer.json as a class rebuilds it; None if it is of another kind. Raises BrokenTokenizer."""
    if name not in _CLASSES:
        return None
    try:
        state = parse_json(data, str(file))
    except BrokenCheckpoint as error:
        raise BrokenTokenizer(error.message) from None
    match state:
        case {
            "model": {"type": "BPE", "vocab": dict(vocabulary), "merges": list(merges)},
            "added_tokens": list(tokens),
        } if all(map(_is_token, tokens)) and all(type(id) is int for id in vocabulary.values()):
            pass
        case _:
            return None
    # Beside a tokenizer.json transformers ignores these.
    kept = {key: value for key, value in settings.items() if key not in ("add_bos_token", "add_eos_token")}
    roles = with_roles(name, kept)
    made = built(name, roles, vocabulary, merges, file)
    if _is_byte_level(made) != _is_byte_level(state):
        return None
    if not _CLASSES[name].own_ends:
        made["post_processor"] = state.get("post_processor")
    if "added_tokens_decoder" not in settings:
        taken = {token["id"] for token in tokens}
        added = {content: id for content, id in added.items() if id not in taken}
        roles["added_tokens_decoder"] = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in tokens
        }
    own = Vocabulary(len(vocabulary), vocabulary.get, {})
    made["added_tokens"] = named_tokens(own, roles, added, file) or []
    parts = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
    unread = tuple(
        part for part in parts if _splitting_options(part, made[part]) != _splitting_options(part, state.get(part))
    )
    same_tokens = made["added_tokens"] == sorted(tokens, key=lambda token: int(token["id"]))
    if not unread and same_tokens and _same_options(made["model"], state["model"]):
        return Rebuilt(data, state, roles, dict(added), unread)
    return Rebuilt(made, made, roles, dict(added), unread)


def _is_token(token: object) -> bool:
    return isinstance(token, dict) and type(token.get("id")) is int and isinstance(token.get("content"), str)


def _is_byte_level(state: Mapping[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps([state.get("pre_tokenizer"), state.get("decoder")])


def _same_options(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two BPE models have the same options. Dropout does not count: it is never used."""

    def options(model: Mapping[str, Any]) -> list[Any]:
        return [default if model.get(key) is None else model[key] for key, default in _BPE_DEFAULTS.items()]

    return options(ours) == options(theirs)


def _splitting_options(part: str, value: Any) -> Any:
    """A component without options that change offsets alone, and without sequences of one.

    part: its name in tokenizer.json.
    """
    if not isinstance(value, dict):
        return value
    if value.get("type") == "ByteLevel":
        if part != "pre_tokenizer":
            return value["type"] if part == "decoder" else None
        return [value.get(key, True) for key in ("add_prefix_space", "use_regex")]
    if value.get("type") == "Sequence":
        (inner,) = [inner for inner in value.values() if isinstance(inner, list)] or [[]]
        members = [kept for member in inner if (kept := _splitting_options(part, member)) is not None]
        return members if len(members) > 1 else next(iter(members), None)
    return value


def tokens_around(settings: Mapping[str, Any], vocabulary: Mapping[str, int], file: Path) -> _Json | None:
    """The post-processor that adds the tokens that settings want around a text; None if they want none."""
    single: list[_Json] = [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {}
    for end, place in (("bos", 0), ("eos", 2)):
        content = _content(settings, end)
        if settings.get(f"add_{end}_token") is not True or content is None:
            continue
        if content not in vocabulary:
            raise BrokenTokenizer(f"not supported: {file}: add_{end}_token, of a token that it lacks")
        single.insert(place, {"SpecialToken": {"id": content, "type_id": 0}})
        tokens[content] = {"id": content, "ids": [vocabulary[content]], "tokens": [content]}
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    return template if tokens else None


def _content(settings: Mapping[str, Any], role: str) -> str | None:
    """The text of the token of a role, such as `bos`, in settings."""
    value = settings.get(f"{role}_token")
    if value is None:
        return None
    return str(value.get("content") if isinstance(value, dict) else value)


def _without_token_flags(settings: _Json) -> _Json:
    """Settings without flags of special tokens: the class overrides them."""

    def content(value: object) -> object:
        return value["content"] if isinstance(value, dict) and "content" in value else value

    roles = {role: content(value) for role, value in settings.items() if role.endswith("_token")}
    lists = {
        role: list(map(content, settings[role]))
        for role in ("extra_special_tokens", "additional_special_tokens")
        if isinstance(settings.get(role), list)
    }
    named = [*roles.values(), *(name for listed in lists.values() for name in listed)]
    names = {name for name in named if isinstance(name, str)}
    plain = settings | roles | lists
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        special = {"special": True, "normalized": False}
        plain["added_tokens_decoder"] = {
            id: {"content": content(token), **special} if content(token) in names else token
            for id, token in decoder.items()
        }
    return plain
