"""Texts shaded by the probability of their tokens."""
