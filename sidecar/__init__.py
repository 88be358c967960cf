"""LLM Routing Sidecar: picks the model for each request by the preferences of a policy."""

__version__ = "0.1.0"
