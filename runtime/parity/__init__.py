"""How far an engine is from the PyTorch model, and from its own earlier outputs."""
