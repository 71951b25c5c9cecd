"""A Steering at work on a model."""
