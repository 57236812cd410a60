"""Checkpoints off the machine and back: stores, uploads, restores, secrets."""
