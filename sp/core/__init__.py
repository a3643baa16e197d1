"""The machinery of a socket: its tasks, its pipes, and the queues of the tasks that wait."""
