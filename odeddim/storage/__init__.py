"""Files: atomic writes, HDF5, rows, runs that go on, several processes, images in and out."""
