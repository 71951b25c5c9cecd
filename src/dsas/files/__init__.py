"""Files: texts, pinned packages, atomic writes, results that resume."""
