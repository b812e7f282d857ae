"""Shared-weight training, rewards, the search loop and the derivation of a cell."""
