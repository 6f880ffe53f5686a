"""The distance of an engine from the PyTorch model, and from its own earlier outputs."""
