"""gRPC for Envoy on a Unix domain socket, in the event loop itself.

`grpc.aio` hands every part of a call through three threads, which takes longer than a decision that
is known: a call of two messages each way takes it four times as long as this. Envoy is all that
speaks here, so that what is implemented of HTTP/2 (RFC 9113) is what a server of gRPC needs:

- `frames`: frames as bytes;
- `connection`: one connection, its streams and their flow control;
- `call`: one call, its messages and its end, as handlers see it;
- `listener`: the socket, and the methods that are served on it.

Headers are decoded by `hpack`. There is no TLS, no upgrade from HTTP/1.1 and no compression of
messages: who may connect is decided by the socket's owner, group and mode. Deadlines
(`grpc-timeout`) are not read: Envoy's external processing filter sends none, and resets the stream
instead.
"""
