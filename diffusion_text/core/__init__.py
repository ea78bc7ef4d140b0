"""Code for every room: keyed draws, numerics, chunked rows, segments, options, mesh axes, trees."""
