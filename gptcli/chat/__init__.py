"""Conversations, without a terminal."""
