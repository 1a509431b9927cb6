"""Understand a data set and the results on it: measure all images once, list suspicious labels, compare runs."""
