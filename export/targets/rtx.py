"""NVIDIA RTX GPUs, through TensorRT-RTX: plans built ahead of time without a GPU, specialised at their first run.

TensorRT-RTX 1.7 knows no SM87 (Orin) and no SM90 (Hopper).
"""

from export.targets import Target

TARGET = Target(
    summary="NVIDIA RTX GPUs, Ampere to Blackwell, through TensorRT-RTX; built without a GPU, proved on one",
    device="cuda",
    compilers={"int8": ("tensorrt_rtx",), "fp16": ("tensorrt_rtx",), "fp32": ("tensorrt_rtx",)},
    default_precisions=("int8", "fp16", "fp32"),
    autocast=("int8", "fp16"),
    profiled=True,
    usual_batch=1,
    # Its 1.7 writes the same plan whatever the workspace, the level or hardware compatibility, and has no lean runtime
    # to put into a version-compatible one: no settings.
    compute_capabilities=("SM80", "SM86", "SM89", "SM120"),
)
