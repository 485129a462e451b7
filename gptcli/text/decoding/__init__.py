"""From token ids back to bytes and text, as they arrive."""
