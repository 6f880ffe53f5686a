"""Frames of cameras, addresses, video files, folders and iterables.

``sources`` says what a source is, ``capture`` is the protocol of what decodes one, ``feed`` runs a source in a thread
of its own, and ``reader`` hands out the frames of one source or several.
"""
