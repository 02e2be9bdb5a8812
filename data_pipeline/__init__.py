"""Bytes on disk to batches: frame stores and the tf.data loader."""
