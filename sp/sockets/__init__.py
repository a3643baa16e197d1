"""The public sockets: one class for each protocol."""
