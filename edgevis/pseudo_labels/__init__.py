"""Pseudo-labels: pictures labelled by detectors, for self-training and distillation (needs no PyTorch).

``python -m edgevis.pseudo_labels`` is the command. Xie, Luong, Hovy, Le, "Self-training with Noisy Student improves
ImageNet classification", CVPR 2020, arXiv:1911.04252: a teacher labels pictures, a student learns them under noise, and
is the next teacher.
"""

from edgevis.pseudo_labels.box_fusion import FusedDetections, ViewDetections, weighted_box_fusion
from edgevis.pseudo_labels.labelling import LabelRequest, label_pictures
from edgevis.pseudo_labels.pictures import PictureSource
from edgevis.pseudo_labels.teachers import TeacherEnsemble, TeacherViews, open_teacher

__all__ = [
    "FusedDetections",
    "LabelRequest",
    "PictureSource",
    "TeacherEnsemble",
    "TeacherViews",
    "ViewDetections",
    "label_pictures",
    "open_teacher",
    "weighted_box_fusion",
]
