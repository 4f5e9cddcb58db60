"""Networks and their weight files."""
