"""Other programs' files, read without running anything they hold."""
