"""Arithmetic of the networks, tuned for each backend: pure functions on NHWC maps."""
