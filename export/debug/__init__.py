"""Finds where an engine stops computing what another one, or its own graph, computes."""
