"""The verification of a bundle: its engines, and the whole way from pixel to answer."""
