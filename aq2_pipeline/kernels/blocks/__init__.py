"""Block formats of ggml: rows of blocks that hold their scales themselves. One module a format."""
