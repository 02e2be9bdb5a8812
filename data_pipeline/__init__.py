"""Bytes on disk to batches: frame stores and the tf.data loader."""

import os

# TensorFlow reads these when it is imported. Without them it logs much that is of no use.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
