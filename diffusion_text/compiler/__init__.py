"""What a compiled program says of itself: topologies without hardware, the text of programs, tables of chips."""
