"""Processes: launched, watched, stopped, started again."""
