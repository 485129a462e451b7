"""Our table lists the fields of a config.json that transformers reads, and a family reads or refuses each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import gptcli
from gptcli.checkpoint.config import reference_fields
from gptcli.checkpoint.config.class_defaults import DEFAULTS, OTHER_NAMES
from gptcli.checkpoint.config.hf_config import _COMMONPLACE, _QUIET, _WITHOUT_EFFECT, HfConfig
from gptcli.checkpoint.families.vision import WRAPPERS
from gptcli.checkpoint.registry import FAMILIES, SAME_AS, architecture_of
from tests.checkpoint.reference_fields import PATH
from tests.checkpoint.reference_fields import reference_fields as made
from tests.parity.reference import BASE, NO_DEFAULT
from tests.tiny import make_model

TABLE: dict[str, Any] = json.loads(PATH.read_text())


@pytest.fixture(scope="module")
def installed() -> dict[str, Any]:
    return made()


def test_the_table_is_that_of_the_installed_transformers(installed: dict[str, Any]) -> None:
    """Holds for other versions than the table's too: every field that the installed one reads is in the table."""
    if TABLE["transformers"] == transformers.__version__:
        assert installed == TABLE, "run `python -m tests.checkpoint.reference_fields`"
    known = set(TABLE["shared"]).union(*TABLE["read"].values())
    declared = {name for kind in CONFIGS.values() for name in vars(kind)}
    for model_type, names in installed["read"].items():
        new = {name for name in (*names, *installed["shared"]) if name in declared} - known
        assert not new, f"{model_type}: transformers {transformers.__version__} reads what the table does not have"
        assert set(installed["classes"][model_type]) == set(TABLE["classes"][model_type])


CONFIGS = {
    model_type: AutoConfig.for_model(model_type, **NO_DEFAULT.get(model_type, {}))
    for model_type in sorted(FAMILIES.keys() - SAME_AS.keys())
}


def test_a_field_without_effect_is_read_and_a_commonplace_one_is_not() -> None:
    """A field that transformers reads and we ignore needs an argument; a field that it never reads needs none."""
    images = {"hidden_dropout_prob", "chunk_size_feed_forward"}  # of what reads them
    read = set(TABLE["shared"]).union(
        *(set(names) - (images if model_type == "internvl" else set()) for model_type, names in TABLE["read"].items())
    )
    assert not _COMMONPLACE & read - {"_commit_hash"}
    assert _WITHOUT_EFFECT - read == {"auto_map", "quantization", "transformers_version"}


@pytest.mark.parametrize("model_type", sorted(CONFIGS.keys() - WRAPPERS.keys()))
def test_all_that_a_class_declares_and_reads_is_read_here_too(model_type: str) -> None:
    fields = json.loads(CONFIGS[model_type].to_json_string(use_diff=False))
    hf = HfConfig(fields | {"rope_parameters": None} if "rope_parameters" not in fields else fields)
    hf = hf.with_defaults(DEFAULTS.get(model_type, {}))
    FAMILIES[model_type](hf, ())
    declared = set(fields) - {"text_config", "vision_config"}
    unread = {name for name in declared - hf._read - _QUIET if reference_fields.reads(model_type, name)}
    assert unread <= {"is_encoder_decoder", "add_cross_attention", "layer_types"}


@pytest.mark.parametrize("model_type", sorted(CONFIGS.keys() - WRAPPERS.keys()))
def test_the_other_names_of_fields_are_those_of_the_class(model_type: str) -> None:
    experts = {"num_experts": "num_local_experts"}  # which all families with experts read under both names
    names = CONFIG_MAPPING[model_type].attribute_map.items()
    assert {other: name for other, name in names if experts.get(other) != name} == OTHER_NAMES.get(model_type, {})


def test_a_field_by_its_other_name_means_the_same_and_a_contradiction_is_refused() -> None:
    ours = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}
    theirs = {other: ours[name] for other, name in OTHER_NAMES["gpt2"].items()}
    wanted = architecture_of(HfConfig(ours), ())
    assert architecture_of(HfConfig({"model_type": "gpt2", "vocab_size": 96} | theirs), ()) == wanted
    assert architecture_of(HfConfig(ours | theirs), ()) == wanted
    with pytest.raises(gptcli.errors.BrokenCheckpoint, match="n_embd = 32 contradicts hidden_size = 48"):
        architecture_of(HfConfig(ours | theirs | {"hidden_size": 48}), ())


NOTHING_READS = {
    "logit_scale": 3.0, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0, "embedding_multiplier": 5.0,
    "use_qk_norm": True, "alibi": True, "use_mrope": True, "partial_rotary": 0.5, "rope_ratio": 4.0, "temperature": 9.0,
    "scale_emb": 12,
}  # fmt: skip


def test_what_is_left_over_changes_nothing_in_the_reference_either(tmp_path: Path) -> None:
    config = AutoConfig.for_model("qwen2", **BASE)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(plain | NOTHING_READS))
    ids = torch.tensor([[3, 5, 7, 9]])
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        assert again(ids).logits.equal(model(ids).logits)
    hf = HfConfig(plain | NOTHING_READS)
    assert architecture_of(hf, ()).left_over == tuple(sorted(NOTHING_READS))


def test_the_table_is_not_opened_for_a_model_without_unknown_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> dict[str, Any]:
        raise AssertionError

    monkeypatch.setattr(reference_fields, "_table", opened)
    assert gptcli.load(make_model(tmp_path)).notes == []
