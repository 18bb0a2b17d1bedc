"""One file of the outside world at a time: images, masks, maps, HDF5."""
