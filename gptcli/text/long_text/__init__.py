"""Texts of any length: where to cut them, their chunks, and which bytes their tokens stand for."""
