"""RoPE's scaling, from the fields and tensors of a GGUF file."""

from __future__ import annotations

from typing import Any

from gptcli.gguf.families.architecture import Fields, original_context

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Files store only the resulting factors of Llama 3.1's and 3.2's scaling; these are all known settings.
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_scaling(fields: Fields, config: dict[str, Any]) -> dict[str, Any] | None:
    """config.json's `rope_scaling`, None without one. config: what is known of config.json so far."""
    kind = fields.text("rope.scaling.type", "none")
    factor = fields.number("rope.scaling.factor") or fields.number("rope.scale_linear")
    stored = [name for name in ROPE_TENSORS if name in fields.file.tensors]
    if stored and (kind not in ("none", "longrope") or factor not in (None, 0.0, 1.0)):
        raise fields.file.unsupported(f"{stored[0]} with RoPE scaling {kind!r} is not read")
    if "rope_factors_long.weight" in stored:
        return {
            "rope_type": "longrope",
            "long_factor": _factors(fields, "rope_factors_long.weight"),
            "short_factor": _factors(fields, "rope_factors_short.weight"),
            "attention_factor": fields.number("rope.scaling.attn_factor", 1.0),
        }
    if stored == ["rope_freqs.weight"]:
        return _stored_factors(fields, config)
    if kind == "yarn" and factor:
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_context(fields, config),
            "attention_factor": fields.number("rope.scaling.yarn_attn_factor"),
            "beta_fast": fields.number("rope.scaling.yarn_beta_fast"),
            "beta_slow": fields.number("rope.scaling.yarn_beta_slow"),
        }
        fields.expect("rope.scaling.yarn_ext_factor", 1.0, -1.0)
        return {name: value for name, value in scaling.items() if value is not None}
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        for name in ("rope.scaling.factor", "rope.scale_linear"):  # old files have the latter, without a type
            fields.expect(name, 0.0, 1.0)
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    raise fields.file.unsupported(f"RoPE scaling {kind!r} with factor {factor} is not read")


def llama3_factors(dim: int, theta: float, factor: float, low: float, high: float, context: float) -> Any:
    """The factor of each channel pair's wavelength in Llama 3's scaling, (dim / 2,) in fp64; see `model/rope.py`."""
    import numpy as np

    turns = context * theta ** -(np.arange(0, dim, 2) / dim) / (2 * np.pi)  # within the original context
    keep = np.clip((turns - low) / max(high - low, 1e-9), 0, 1)  # without a blend if low is high
    return 1 / (keep + (1 - keep) / factor)


def _stored_factors(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling if it has the file's factors; else the factors themselves, for texts of any length."""
    import numpy as np

    factors = np.array(_factors(fields, "rope_freqs.weight"))
    for factor in _LLAMA3_FACTORS:
        known = llama3_factors(2 * len(factors), config["rope_theta"], factor, *_LLAMA3.values())
        if np.allclose(known, factors, rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    values, context = factors.tolist(), max(2, config["max_position_embeddings"])
    return {
        "rope_type": "longrope",
        "short_factor": values,
        "long_factor": values,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }


def _factors(fields: Fields, name: str) -> list[float]:
    import numpy as np

    tensor = fields.file.tensors.get(name)
    if tensor is None or tensor.kind != "F32" or len(tensor.shape) != 1:
        raise fields.file.broken(f"{name} must be a list of numbers in fp32")
    return [float(str(value)) for value in fields.file.data(tensor).view(np.float32)]
