"""GGUF files: reading them and converting them to model directories."""
