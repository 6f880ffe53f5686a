"""Which layers stay float so that INT8 keeps its accuracy."""
