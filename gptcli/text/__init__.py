"""Text, tokens and chat templates, without torch.

tokenizer.py turns texts into ids and back: tokenizer_files/ reads its files, control_tokens.py keeps typed control
tokens text, backend.py encodes, decoding/ decodes. sandbox/ runs untrusted tokenizers and templates.
"""
