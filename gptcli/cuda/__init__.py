"""Decoding on a GPU. Experimental: it has not run on a device yet."""
