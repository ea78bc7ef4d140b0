"""Evaluation: the bound on held-out text, and statistics of text. A function gives the nats."""
