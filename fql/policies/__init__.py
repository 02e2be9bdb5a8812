"""Trained policies: from a run or an exported folder, and their evaluation."""
