"""Tokenizers, the Triton client and its circuit breaker."""
