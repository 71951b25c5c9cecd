"""Files: texts, pinned packages, atomic writes, remembered results."""
