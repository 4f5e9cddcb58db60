"""Photographs in batches of one shape: scaling, augmentation, shuffling."""
