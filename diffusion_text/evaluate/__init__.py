"""Evaluation: the bound on held-out text, text statistics, and exact toy languages. Objectives and samplers are passed in."""
