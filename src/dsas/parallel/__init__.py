"""Jobs over processes, and their progress."""
