"""One protected run, of any framework: order, status, scores, receipt, checkpoints found."""
