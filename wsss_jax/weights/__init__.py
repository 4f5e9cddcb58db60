"""Pretrained weights: where they come from, and every layout of files that is read."""
