"""What each path of the server answers."""
