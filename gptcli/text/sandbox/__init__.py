"""Runs untrusted chat templates and tokenizers in another process, with limits of time and memory."""
