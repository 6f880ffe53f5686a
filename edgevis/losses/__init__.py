"""What the papers train with, one file for each."""

__all__: list[str] = []
