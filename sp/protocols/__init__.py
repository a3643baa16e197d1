"""The protocols: one engine in each module.  An engine does no I/O and never awaits."""
