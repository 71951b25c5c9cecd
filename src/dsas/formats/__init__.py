"""Formats: vectors published by others, read and written, and given a regulator."""
