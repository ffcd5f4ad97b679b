"""noisy_fm: noisy model learning in JAX."""
