"""Texts of any length, encoded in parts."""
