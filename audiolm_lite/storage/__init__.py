"""Files on disk: atomic writes, hashes of content, the cache folder and memory-mapped tables of names."""
