"""Programs to start from.  The tests run each one."""
