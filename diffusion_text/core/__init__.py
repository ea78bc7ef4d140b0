"""What every room may use: keyed draws, numerics, chunked evaluation of rows, segments, names of mesh axes."""
