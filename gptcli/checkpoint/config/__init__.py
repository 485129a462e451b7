"""Reads a config.json, value by value, and knows which fields transformers reads."""
