"""Make the synthetic sample, for people who don't have the competition's data."""
