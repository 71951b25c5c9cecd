"""What is steered: sites, hooks, passes, and the kinds of model."""
