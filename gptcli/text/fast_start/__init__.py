"""Snapshots of opened tokenizers: of a large vocabulary in flat arrays, only the pieces of a text are parsed."""
