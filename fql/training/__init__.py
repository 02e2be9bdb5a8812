"""Training of an agent: data to batches, the loop, the online phase."""
