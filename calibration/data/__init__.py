"""The images that a build calibrates and verifies on."""
