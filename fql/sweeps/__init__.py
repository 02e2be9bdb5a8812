"""Many runs from one file: which there are, their states, and how they are started."""
