"""Schedules: how fast tokens are lost. `discrete`: alpha(t), the probability of being clean; `gaussian`: log-SNR of vectors."""
