"""How noise grows with time: alpha(t) of ids (`discrete`), log-SNR of vectors (`gaussian`)."""
