"""The CPU kernels: optional C code for what decides the speed of a token. Without them, torch does everything."""
