"""Frames from cameras, video files, folders and addresses."""
