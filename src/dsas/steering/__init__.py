"""The Steering: rules, composition, storage."""
