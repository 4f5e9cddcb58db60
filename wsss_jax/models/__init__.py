"""Whole networks: a backbone and its head, from their names (``build``, ``networks``)."""
