"""The distance of an engine from the reference model, and from its own earlier outputs."""
