"""Policy compilation, the registry and the walk of one routing request."""
