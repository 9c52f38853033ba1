"""Who may connect and subscribe: tokens, signed streams, and the chain that picks one."""
