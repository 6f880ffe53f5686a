"""``python -m export.build``: a PyTorch model becomes a bundle of engines that are proved to compute the same."""
