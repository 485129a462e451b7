"""Text, tokens and chat templates, without torch.

tokenizer.py makes ids of texts: control_tokens.py treats typed control tokens as text, backend.py encodes,
and spelling.py knows which bytes a token is. sandbox/ runs strangers' tokenizers and templates, long_text/ cuts texts.
"""
