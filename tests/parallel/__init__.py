"""Tests of the room `parallel`."""
