"""INT8: the images that a build measures itself on, the quantised graph, and what it must look like."""
