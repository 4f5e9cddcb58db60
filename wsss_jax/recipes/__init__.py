"""Whole paths: from a data set to masks, numbers and a report."""
