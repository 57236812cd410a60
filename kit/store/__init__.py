"""Files that are whole or not there: checkpoints written, verified, read."""
