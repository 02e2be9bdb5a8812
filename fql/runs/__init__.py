"""What a run keeps on disk and starts from: its folder, checkpoints and log."""
