"""Data sets, batches and stores: everything that touches the disk."""
