"""Layers that read a text token by token and keep a state of it, instead of attending to all of it."""
