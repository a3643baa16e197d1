"""ws, wss, ws+unix: SP over WebSocket over tcp, TLS or a unix socket."""

from sp.transports.ws.client import connect
from sp.transports.ws.shared_port import listen

__all__ = ["connect", "listen"]
