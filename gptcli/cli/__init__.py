"""Commands, options and everything that reaches a terminal."""
