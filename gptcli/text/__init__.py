"""Text, tokens and chat templates, without torch."""
