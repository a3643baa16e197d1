"""TLS by pyOpenSSL: configuration, contexts, and sessions without I/O."""
