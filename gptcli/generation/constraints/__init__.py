"""Holds a text to a schema, grammar or regular expression, with llguidance."""
