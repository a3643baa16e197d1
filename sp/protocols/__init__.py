"""One sans-IO engine a file: events in as method calls, answers out as return values.  Nothing here awaits."""
