"""The gRPC edge: server, services, interceptors, proto conversion."""
