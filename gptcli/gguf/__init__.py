"""GGUF files: reading them, writing them and converting them to model directories."""
