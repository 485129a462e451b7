"""Requests from a file: what is asked, what is answered, and where a file of answers goes on."""
