"""Tests of the room `yolo`."""
