"""Writes gptcli/gguf/codebooks.json from the gguf package: the codebooks that ggml's IQ types index.

They are constants of the format, found by a search that nobody can repeat, so they are data here as there.

    python -m tests.gguf.record_codebooks
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import gguf.quants
import numpy as np

import gptcli.gguf

PATH = Path(gptcli.gguf.__file__).with_name("codebooks.json")
NAMES = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def codebooks() -> dict[str, dict[str, object]]:
    """Each codebook's levels, the width of an entry, and the entries, two levels' indices in a byte."""
    result: dict[str, dict[str, object]] = {}
    for name in NAMES:
        quant = getattr(gguf.quants, name)
        quant.init_grid()
        levels, indices = np.unique(quant.grid.reshape(-1), return_inverse=True)
        packed = (indices[::2] | indices[1::2] << 4).astype(np.uint8)
        entries = base64.b64encode(packed.tobytes()).decode()
        result[name] = {"levels": levels.astype(int).tolist(), "width": quant.grid_shape[1], "entries": entries}
    return result


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(content)}" for name, content in codebooks().items())
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
