"""Text that can be nothing but what a schema, grammar or regular expression describes, by llguidance."""
