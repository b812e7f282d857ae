"""What is read from and written to disk: run folders, checkpoints, JSON, locks."""
