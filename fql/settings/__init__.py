"""Every setting of a run, the published ones, and what a command may change."""
