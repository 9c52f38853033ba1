"""Several processes that serve the ports of one machine: who starts them, looks after them, and speaks for them."""
