"""Requests from a file, their answers, and how a file of answers is resumed."""
