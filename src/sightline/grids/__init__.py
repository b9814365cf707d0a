"""The format of CLIP grids: a file or a folder of shards, and fast reading of their rows."""
