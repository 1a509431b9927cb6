"""The data: read the competition's files, make folds, cache images and labels, build and augment batches."""
