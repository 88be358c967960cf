"""The Envoy edge: clients that speak an LLM provider's API are routed without knowing of it."""
