"""ws, wss, ws+unix: SP over WebSocket over tcp, TLS or a unix socket."""

from sp.transports.ws_client import connect
from sp.transports.ws_server import listen

__all__ = ["connect", "listen"]
