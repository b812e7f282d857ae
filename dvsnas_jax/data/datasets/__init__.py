"""Datasets on disk: how each is recognised, its frames, its classes and their codes."""
