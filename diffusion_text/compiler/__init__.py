"""Analysis of compiled programs: topologies without hardware, the text of programs, chips."""
