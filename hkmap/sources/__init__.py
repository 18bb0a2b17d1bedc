"""A dataset's own layout on disk, read into records. One module a dataset."""
