"""Helpers that every other package uses: arrays, files, text, the frame of a command line, the machine."""
