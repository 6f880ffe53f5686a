"""The bounds of the quality checks, and the measurement behind each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one task; values beyond them give warnings.

    Attributes:
        min_scale: Pixels of the image for each pixel of the model's input, along the worse axis. For segmentation: the
            root of the object's area over that of the model's input.
        blur_divisor: Sharpness is measured on the model's input divided by this: where the model needs detail.
        min_sharpness: 0.5 is no detail, 1 is sharp edges; see :func:`runtime.enrolment.quality.inspect`.
        min_bright_level: The least 95th percentile of brightness, 0..255.
        max_dark_level: The largest 5th percentile of brightness, 0..255.
        min_contrast: Between the two.
        max_picture_correlation: The largest correlation of the coarse brightness of two images of one call.
        max_cosine: The largest cosine between the embeddings of two images.
        max_rival_margin: The largest lead of the best other label's cosine over the label's own.
        max_outlier_ratio, max_outlier_gap: An outlier exceeds both: its distance (1 - cosine, the median over the
            label's other images) over the median of theirs, and the difference of the two.
    """

    min_scale: float
    blur_divisor: int
    min_sharpness: float
    min_bright_level: float
    max_dark_level: float
    min_contrast: float
    max_picture_correlation: float
    max_cosine: float
    max_rival_margin: float
    max_outlier_ratio: float
    max_outlier_gap: float


# Measured with the weights that ship, on photographs that do not: PKU-Reid (crops of 48 x 128), crops of two videos of
# walking persons, Grocery Store and Caltech-101 for classes, Clothing Co-Parsing for segmentation. "Ordinary" is such a
# picture as it comes; the harm is that of enrolling damaged pictures only. docs/enrolment-quality.md has the tables.

REID = Bounds(
    # 48 x 128 is 0.38. Crops shrunk to 28 x 56 (0.22) keep a cosine of 0.96 and a rank-1 of 0.78 (of 0.80), those of
    # 24 x 48 (0.19) 0.94 and 0.73, those of 22 x 28 (0.11) 0.87 and 0.67.
    min_scale=0.2,
    # A quarter of 256 x 128: crops of 48 x 128 hold no more detail than that.
    blur_divisor=4,
    # Ordinary: 0.62 at the lowest 0.5 % of PKU-Reid, 0.62 at the lowest 2 % of the videos. Blurred by a Gaussian of
    # 1.2 % of the height (cosine 0.91, rank-1 0.71): at most 0.60 in 98 of 100.
    min_sharpness=0.62,
    # Ordinary: at least 112. At a quarter of the light (52) TPIR falls by a third, at 15 % (31) by three quarters.
    min_bright_level=45,
    # Ordinary: at most 141. Washed out to 40 % of the contrast (158) TPIR falls by a third, to 25 % (194) by 80 %.
    max_dark_level=175,
    # Ordinary: at least 90. At 47 TPIR falls by a fifth, at 28 by three quarters.
    min_contrast=40,
    # Two pictures of one thing: at most 0.86 (PKU-Reid) and 0.96 (Grocery). The same picture after JPEG or in other
    # light: at least 0.99.
    max_picture_correlation=0.99,
    # Two ordinary pictures of one person: at most 0.956 as raw cosines, 0.86 in the score space. The same one after
    # JPEG 80: from 0.990 and 0.984; the frames of a video, a tenth of a second apart: 0.999.
    max_cosine=0.97,
    # Of five pictures of ten persons, one camera, with one wrong label: ordinary 0.1 % above it, wrong ones 98 %, in
    # the score space 0.8 % and all; over two cameras 2 % and 94 %.
    max_rival_margin=0.1,
    # Measured likewise; the gap keeps a series of nearly equal frames from making an outlier of every other view.
    max_outlier_ratio=1.8,
    max_outlier_gap=0.15,
)

CLASSIFY = Bounds(
    # 224 x 224. Photographs shrunk to 96 pixels (0.43) keep a cosine of 0.72 and 0.87 of an accuracy of 0.97; to 64,
    # 0.51 and 0.76.
    min_scale=0.45,
    # Half of the input: a Gaussian of 0.8 % of the height costs three quarters of TPIR already.
    blur_divisor=2,
    # Ordinary: 0.62 at the lowest of Grocery and the lowest 0.5 % of Caltech-101. Blurred by 0.8 % of the height
    # (cosine 0.76): at most 0.60 in 98 of 100.
    min_sharpness=0.62,
    # Ordinary: at least 98. At a quarter of the light (48) TPIR falls by 60 %, at 15 % (29) by 95 %.
    min_bright_level=45,
    # Ordinary: at most 109 (Grocery) and 188 (Caltech-101, things on white paper; 0.2 % above 175). Washed out to 40 %
    # of the contrast (165) TPIR falls by 60 %, to 25 % (199) by 95 %.
    max_dark_level=175,
    # Ordinary: at least 72 (Grocery) and 35 (Caltech-101; 0.2 % below 40). At 39 TPIR falls by two thirds.
    min_contrast=40,
    max_picture_correlation=0.99,
    # Two ordinary pictures of one class: at most 0.978 (Grocery), 0.989 (Caltech-101, which repeats some).
    max_cosine=0.99,
    # Of five pictures of ten classes, with one wrong label: ordinary 0.3 % (Grocery) and 2.4 % (Caltech-101) above it,
    # wrong ones 97 % and 89 %.
    max_rival_margin=0.1,
    max_outlier_ratio=1.8,
    max_outlier_gap=0.15,
)

FEW_SHOT_SEGMENT = Bounds(
    # Median object, one shot of 50, mean IoU: 0.17 of the side 0.31, 0.10 0.27, 0.07 0.17, 0.04 0.11.
    min_scale=0.07,
    blur_divisor=2,
    # Blur costs little: the IoU falls from 0.31 to 0.30 at 1.6 % of the height and to 0.29 at 3 %, where 95 of 100 have
    # less than 0.54.
    min_sharpness=0.53,
    # Nor does light: at a tenth of it the IoU is the same. Black shoes are dark; nothing at all is left below this.
    min_bright_level=15,
    max_dark_level=240,
    min_contrast=0,  # an object may have one colour
    max_picture_correlation=0.99,
    # These compare embeddings, which this task does not have.
    max_cosine=1,
    max_rival_margin=2,
    max_outlier_ratio=1,
    max_outlier_gap=2,
)
