"""What every command shares: errors, files, parameters, processes, HDF5."""
