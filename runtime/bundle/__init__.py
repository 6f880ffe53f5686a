"""What a bundle is: its specification, its manifest, reading, writing and checking it."""

from runtime.bundle.bundle import Bundle

__all__ = ["Bundle"]
