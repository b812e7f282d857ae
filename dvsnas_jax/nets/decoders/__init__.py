"""Decoders of the static network, a file each."""
