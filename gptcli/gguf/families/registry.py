"""All architectures of GGUF by their names, as data.

Names, transformations and defaults are those of llama.cpp's converter and of its model loaders.
"""

from __future__ import annotations

from gptcli.gguf.families import gemma, gpt, latent_attention, llama, mixtures, states

ARCHITECTURES = {
    **llama.ARCHITECTURES,
    **gpt.ARCHITECTURES,
    **gemma.ARCHITECTURES,
    **latent_attention.ARCHITECTURES,
    **mixtures.ARCHITECTURES,
    **states.ARCHITECTURES,
}
