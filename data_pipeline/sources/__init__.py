"""Where data come from: each source is a stream of checked blocks."""
