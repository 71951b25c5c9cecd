"""What transforms and regulators are made of."""
