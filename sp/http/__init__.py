"""HTTP, as far as WebSocket needs it."""
