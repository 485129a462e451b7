"""Snapshots of opened tokenizers: what a large vocabulary says is read from flat arrays, as far as a text needs it."""
