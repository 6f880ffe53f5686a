"""Proofs of a finished bundle: its engines, and the way from pixel to answer."""
