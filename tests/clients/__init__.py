"""Examples for callers."""
