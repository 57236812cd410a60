"""Tests of the room `kaggle`."""
