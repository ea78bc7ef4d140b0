"""Attention that knows the layout, and the loss of the unembedding: reference, XLA and Pallas implementations."""
