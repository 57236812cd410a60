"""Faults injected everywhere: `make chaos`, and its smallest in the tests."""
