"""Checkpoints on disk: what they hold and how it becomes a decoder."""
