"""Images, maps and shards on disk. Whatever is written is written beside its name, then renamed."""
