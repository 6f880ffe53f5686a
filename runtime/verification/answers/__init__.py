"""Pictures that a bundle carries, and the answers of a predictor on the reference model to them.

``golden.npz`` proves engines on tensors that were ready. What makes those tensors of pixels, and answers of what the
engine returns, is proved here: a build runs a whole predictor whose engine is the reference model in float32 on a few
pictures, and keeps pictures, input tensors and answers in ``answers.npz``; ``edgevis verify`` runs the predictor with
each engine on the same pictures. Preprocessing is compared first and by itself, so that an OpenCV that resizes
otherwise, say, is not taken for a wrong engine.

``file.py``
    what the file holds: reading, writing.
``exercise.py``
    what a predictor is asked, by its task: the same at the build and on the device.
``definition.py``
    preprocessing in NumPy, by which a build checks its OpenCV.
``reference.py``
    the answers of the model itself, at the build.
``compare.py``
    how far two answers are apart, and how far they may be.
"""
