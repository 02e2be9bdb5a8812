"""Many runs from one file: which there are, how each stands, and how they are started."""
