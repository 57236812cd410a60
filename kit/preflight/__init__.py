"""The session report: what would stop training, before it starts."""
