"""Trains a decoder: data, losses, adapters, checkpoints."""
