"""The torch-free inference layer of edgevis. Import :mod:`edgevis`, not this package."""

# `runtime` is a generic name: edgevis/__init__.py looks for this mark to tell ours from another one on the path.
OWNER = "edgevis"
