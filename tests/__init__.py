"""Tests, in the rooms of `kit`."""
