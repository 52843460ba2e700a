"""safetensors files, alone and in shards."""
