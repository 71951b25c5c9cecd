"""Formats: vectors that others published, read and written, and given a regulator."""
