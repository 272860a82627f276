"""Files: atomic writes, HDF5, resumable runs, several processes, images in and out. See README.md beside this file."""
