"""How ImageNet's pictures are normalised for nearly all networks that were trained on them."""

from __future__ import annotations

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue over the training pictures, 0..1."""
