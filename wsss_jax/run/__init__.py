"""Work over many images and steps: processes, progress, run folders, interruption."""
