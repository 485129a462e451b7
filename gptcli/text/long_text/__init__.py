"""Texts of any length: where to cut them, their chunks, and the bytes of their tokens."""
