"""The search for the layers that stay float so that INT8 keeps its accuracy."""
