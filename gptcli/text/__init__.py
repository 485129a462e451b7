"""Text, tokens and chat templates, without torch.

tokenizer.py turns texts into ids: control_tokens.py keeps typed control tokens text, backend.py encodes, spelling.py
knows the bytes of a token. sandbox/ runs strangers' tokenizers and templates, long_text/ cuts texts.
"""
