"""Evaluation: what steering does to the texts (toxicity, fluency, a judge) and to the model, with intervals.

One measure per module, each usable alone; docs/reference/measures.md says what each tells and what it hides.
"""
