"""GGUF's architectures as data, related ones in one module, in its dict ARCHITECTURES."""
