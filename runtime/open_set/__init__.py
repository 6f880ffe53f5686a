"""Open-set identification: the decision between enrolled labels and strangers.

Two rates judge it (ISO/IEC 19795): FPIR, the share of strangers for whom any label comes back, and TPIR, the share of
the enrolled who come back under their own label. A threshold trades one for the other.

- :mod:`runtime.open_set.space`: the scores, normalised so that strangers of every kind score alike.
- :mod:`runtime.open_set.strangers`: a threshold measured on strangers of the camera's own scene.
- :mod:`runtime.open_set.statistics`: a threshold estimated from what is enrolled and what was measured of the weights.
- :mod:`runtime.open_set.enrolled`: what an enrolment says of itself, each image left out in turn.
- :mod:`runtime.open_set.decision`: which of them decides, and what is known of its rates.
"""
