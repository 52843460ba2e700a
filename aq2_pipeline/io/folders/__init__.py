"""Folders that engines load: compressed-tensors and MLX."""
