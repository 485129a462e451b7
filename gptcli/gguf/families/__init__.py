"""GGUF's architectures as data, related ones in one module: each has them in a dict ARCHITECTURES."""
