"""A Steering applied to a model."""
