"""Looking at a data set: one pass over it, its numbers, labels that look wrong."""
