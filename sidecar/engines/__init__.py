"""Builds routing-model engines and their manifests."""
