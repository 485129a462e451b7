"""Options: declared, read, completed, refused, and set by a configuration file."""
