"""A conformance suite for implementations of the Scalability Protocols: nanomsg, nng, mangos and
their kin, judged by the bytes."""
