"""Several processes as one: ranks and the sum of gradients."""
