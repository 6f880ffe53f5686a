"""What a bundle is: its specification, its manifest, reading, writing and checking it."""
