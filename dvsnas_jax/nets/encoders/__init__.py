"""Encoders of the static network, a file each."""
