"""From a Hugging Face folder or a GGUF file to a decoder's parameters."""
