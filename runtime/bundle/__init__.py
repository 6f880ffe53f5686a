"""The bundle format: specification, manifest, reading, writing and checking."""
