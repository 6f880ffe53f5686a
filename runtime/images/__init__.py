"""Pixels: read, resized, preprocessed and drawn in one way for every entrance."""
