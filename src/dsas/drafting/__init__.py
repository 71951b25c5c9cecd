"""Drafting: source, control and target sets made from one sentence that names a behaviour."""
