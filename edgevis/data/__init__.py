"""Images, labels and masks as data sets keep them, and how training and evaluation draw from them.

Readers list a folder or a zip (never unpacked) and give frozen indices of paths and labels; what they point to is
decoded when it is asked for. Nothing here needs PyTorch: indices have ``__len__`` and ``__getitem__``, samplers
``__len__`` and ``__iter__``, which is what its ``DataLoader`` asks of a data set and of a ``batch_sampler``.
"""

from edgevis.data.boxes import boxes_from_class_ids, boxes_from_instances
from edgevis.data.classes import LabelledImages, read_class_folders, read_class_table
from edgevis.data.detection import BoxLabels, DetectionImages
from edgevis.data.detection_split import read_detection_images
from edgevis.data.episodes import Episode, EpisodeSampler
from edgevis.data.few_shot_masks import (
    ClassMask,
    ClassMasks,
    Visible,
    class_masks,
    coco_fold,
    examples_by_class,
    pascal_fold,
    read_coco20i,
    read_fss1000,
    read_pascal5i,
)
from edgevis.data.identities import IdentitySampler
from edgevis.data.mixed import MixedSplit, mixed_split
from edgevis.data.reid import PersonImages, read_market1501, read_pku_reid
from edgevis.data.segmentation import InstanceImages, MaskedImages, read_instances, read_masked_images
from edgevis.data.segmentation_episodes import SegmentationEpisode, SegmentationEpisodes
from edgevis.data.volumes import Slice, Volume, Volumes, read_volumes

__all__ = [
    "BoxLabels",
    "ClassMask",
    "ClassMasks",
    "DetectionImages",
    "Episode",
    "EpisodeSampler",
    "IdentitySampler",
    "InstanceImages",
    "LabelledImages",
    "MaskedImages",
    "MixedSplit",
    "PersonImages",
    "SegmentationEpisode",
    "SegmentationEpisodes",
    "Slice",
    "Visible",
    "Volume",
    "Volumes",
    "boxes_from_class_ids",
    "boxes_from_instances",
    "class_masks",
    "coco_fold",
    "examples_by_class",
    "mixed_split",
    "pascal_fold",
    "read_class_folders",
    "read_class_table",
    "read_coco20i",
    "read_detection_images",
    "read_fss1000",
    "read_instances",
    "read_market1501",
    "read_masked_images",
    "read_pascal5i",
    "read_pku_reid",
    "read_volumes",
]
