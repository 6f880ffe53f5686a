"""The choice of the engine that runs on this machine, and the build of engines on it."""
