"""Snapshots of loaded models, which start without torch."""
