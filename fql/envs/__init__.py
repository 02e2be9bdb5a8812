"""Environments in processes of their own. Imports neither JAX nor TensorFlow."""
