"""The synthetic sample, for everybody who doesn't have the competition's data."""
