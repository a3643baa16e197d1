"""TLS by pyOpenSSL: configurations, contexts, and sessions without I/O."""
