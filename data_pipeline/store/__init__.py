"""Prepared data on disk: frames, labels, latents."""
