"""Environments in separate processes. Imports neither JAX nor TensorFlow."""
