"""The same jobs done by trio-sp and by each of its peers, a module each.  A server tells its URL first; a client gets it."""

HOST = "127.0.0.1"
ANY_PORT = f"tcp://{HOST}:0"
END = b""
"""The last message of a one-way run, sent again until the receiver is gone, since it may get lost as well."""
END_EVERY = 0.02
BATCH = 100
