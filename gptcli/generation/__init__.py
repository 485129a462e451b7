"""Turning logits into a stream of text."""
