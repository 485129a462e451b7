"""From a Hugging Face folder on disk to a decoder's parameters."""
