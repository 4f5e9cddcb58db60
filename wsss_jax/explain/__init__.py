"""Explanations of a classifier: raw maps of its classes."""
