"""From examples to a Steering, in closed form."""
