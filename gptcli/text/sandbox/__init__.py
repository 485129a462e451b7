"""What strangers wrote runs in a process of its own."""
