"""Devices, precision, and running a decoder."""
