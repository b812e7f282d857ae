"""Weights of static networks from files: PyTorch, safetensors folders."""
