"""What is drawn and printed of runs."""
