"""Masks and score maps in other tools' formats, and corrected masks back from them."""
