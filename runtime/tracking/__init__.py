"""Tracks of objects in a video, and the identities that they keep.

- :mod:`runtime.tracking.trackers`: detections of consecutive frames to tracks.
- :mod:`runtime.tracking.views`: which crops of a track are worth an embedding.
- :mod:`runtime.tracking.evidence`: one label for a track, from all its views.
- :mod:`runtime.tracking.identities`: objects that are not enrolled, under numbers that stay.
- :mod:`runtime.tracking.objects`: what comes out of it.
"""
