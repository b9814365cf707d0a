"""The format of grid features: a file or a folder of shards, and fast reading of their rows."""
