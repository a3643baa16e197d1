"""The cases.  Importing this fills ``case.CASES``, in the order of the table."""

from interop.conformance.cases import greeting, framing, backtraces, survey, pubsub, pipeline, bus, pair, handshake, websocket  # noqa: F401, I001
