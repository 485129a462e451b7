"""What is written to a terminal, and what it sends."""
