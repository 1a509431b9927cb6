"""The competition's files, folds, cached images and labels, batches and augmentation."""
