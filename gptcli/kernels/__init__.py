"""The CPU kernels: optional C code for what decides the speed of a token. Everything works without them, on torch."""
