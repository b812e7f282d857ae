"""Datasets prepared as TensorFlow Datasets records: writing and reading back."""
