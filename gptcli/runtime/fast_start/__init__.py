"""Starts without torch, from a snapshot of a loaded model.

snapshot_file.py is what a fast start reads, snapshots.py decides whether it is valid, snapshot_engine.py runs it.
"""
