"""Reads the files of tokenizers as each format and each class of transformers does."""
