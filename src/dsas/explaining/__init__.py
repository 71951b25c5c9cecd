"""What a Steering does to given texts."""
