"""Numbers become text. Never computes one."""
