"""Text, tokens and chat templates, without torch.

tokenizer.py makes ids of texts: control_tokens.py keeps control tokens that somebody types text, backend.py encodes,
and spelling.py knows which bytes a token is. sandbox/ runs strangers' tokenizers and templates, long_text/ cuts texts.
"""
