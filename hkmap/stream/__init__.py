"""The records of a stream, and what they refer to: files, and rows of shards."""
