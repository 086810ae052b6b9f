"""The HDF5 results: flat files of ragged arrays, written, checked and read."""
