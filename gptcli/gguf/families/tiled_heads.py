"""Undoes the order of value heads in Qwen 3.5's files: the first of every key head, then the second of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

TILED = "linear_value_heads_tiled"  # a field of config.json that only we know


def grouped_order(config: dict[str, Any], name: str) -> tuple[int, np.ndarray[Any, Any]] | None:
    """A tensor's reordered axis, and the file's index of each entry along it; None without one. name: transformers'."""
    import numpy as np

    kind = name.removesuffix(".weight").rpartition(".")[2]
    if not config.get(TILED) or ".linear_attn." not in name or kind == "norm":
        return None
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    dim = 1 if kind in ("in_proj_a", "in_proj_b", "A_log", "dt_bias") else config["linear_value_head_dim"]
    first = 2 * keys * config["linear_key_head_dim"] if kind in ("in_proj_qkv", "conv1d") else 0  # rows of q and k
    values = np.arange(heads * dim).reshape(-1, keys, dim).swapaxes(0, 1).reshape(-1)
    return int(kind == "out_proj"), np.concatenate([np.arange(first), first + values])
