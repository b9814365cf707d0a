"""The format of CLIP grids: a file, a folder of shards, rows read where they lie."""
