"""The decoder itself, written once for all families."""
