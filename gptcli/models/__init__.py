"""Where models live and how they get there."""
