"""What a sidecar does per second and how long it takes, beside what else there is to compare."""
