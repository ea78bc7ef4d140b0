"""Noise as a function of time: alpha(t) of ids (`discrete`), log-SNR of vectors (`gaussian`)."""
