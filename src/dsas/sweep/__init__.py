"""Sweep: several Steerings over the same strengths, prompts and texts; how it is run, and what it says."""
