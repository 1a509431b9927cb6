"""Explore a data set: measure all images once, compute statistics, list labels that look wrong."""
