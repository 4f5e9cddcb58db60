"""Whole networks: a backbone and its head, by name (``build``) or by a file (``recognise``)."""
