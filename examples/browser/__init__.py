"""SP in a browser."""
