"""Model families as data: one module each."""
