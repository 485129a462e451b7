"""Lowers a decoder to a program that the compiled kernels run."""
