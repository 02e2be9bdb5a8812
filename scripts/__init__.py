"""The commands of the `fql` program."""
