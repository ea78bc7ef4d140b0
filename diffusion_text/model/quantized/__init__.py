"""Matrices as few bits per number: how they are stored and read, and four ways to choose the bits.

  packing    codes of 3, 4 or 8 bits as bytes
  stored     the options, the map that a network reads, and its arrays
  grid       scale and zero of each group of numbers, rounding to nearest and at random
  gptq       rounding with compensation of the error (arXiv 2210.17323)
  rescaling  factors of inputs before rounding: AWQ (2306.00978), SmoothQuant (2211.10438)
  observed   what all these need to know of the inputs of a matrix
  methods    a whole tree of parameters, by any of them

The package `qwix` (0.1.8) was looked at first. It quantises flax modules by intercepting their
products and keeps objects of its own (`QArray`) in the tree, where parameters here are plain
arrays. It emulates 3 bits in bytes, offers asymmetric grids for 4 and 8 bits only, and its GPTQ
takes neither 3 bits nor layers one after the other.
"""
