"""Boxes as arrays: overlap, non-maximum suppression, and the matching of two lists of detections."""
