"""`fql benchmark`: measurements on this machine."""
