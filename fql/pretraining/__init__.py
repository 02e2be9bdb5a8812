"""Encoders trained without rewards, and the check of what they know."""
