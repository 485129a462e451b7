"""Many texts that share an engine's steps."""
