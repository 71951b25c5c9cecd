"""Evaluation: what steering does to the texts (toxicity, fluency) and to the model (perplexity), with intervals."""
