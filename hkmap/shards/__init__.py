"""Shards: self-contained HDF5 files of images, maps and labels, and what is done with them."""
