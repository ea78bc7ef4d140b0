"""Attention that knows the layout, and the loss of the head: reference, XLA and Pallas."""
