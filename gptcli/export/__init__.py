"""Writes opened models: as GGUF files, and as folders of safetensors, quantized or with new values."""
