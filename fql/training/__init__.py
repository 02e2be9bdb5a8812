"""Runs: data to batches, the training loop, checkpoints, evaluation."""
