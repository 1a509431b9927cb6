"""Predicting with test-time augmentation, stored probabilities, the vote."""
