"""Measures weights for open-set identification and writes the data that :mod:`runtime.open_set` reads.

- :mod:`edgevis.open_set.embeddings`: the embeddings of images that nobody enrols, and of scenes with known labels.
- :mod:`edgevis.open_set.space`: the score space: whitening, and the cohort.
- :mod:`edgevis.open_set.enrolments`: enrolments drawn from a scene, with their strangers.
- :mod:`edgevis.open_set.fit`: threshold models and what the rates come to be.
- :mod:`edgevis.open_set.sidecar`: the file that keeps it, and finding the one of given weights.

``python -m edgevis.open_set`` does it all.
"""
