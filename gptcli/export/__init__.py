"""Writes opened models: as GGUF files, and as folders of quantized safetensors."""
