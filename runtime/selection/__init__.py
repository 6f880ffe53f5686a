"""Which engine of a bundle runs on this machine, and engines that are built on it."""
