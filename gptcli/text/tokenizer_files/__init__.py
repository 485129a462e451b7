"""Reads the files of tokenizers: what each format and class of transformers makes of them."""
