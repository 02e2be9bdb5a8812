"""Collection of data with OGBench's scripted oracles."""
