"""NVIDIA Jetson, through TensorRT 10.3 (JetPack 6) and later, 11.4.1 among them (JetPack 7.2.2).

A plan runs only on the kind of machine that built it, so a bundle holds what it is built from: typed ONNX, the shapes,
and golden inputs and outputs to prove it with on the device. Orin is Ampere, SM87: it has INT8 and FP16 tensor cores
and no FP8.
"""

from export.targets import Target

TARGET = Target(
    summary="NVIDIA Jetson through TensorRT; the engines are finished and proved on the device",
    device="cuda",
    machine="aarch64",
    # The fastest first: of those not yet proved, the runtime takes the first whose graph decides as the model does.
    compilers={"int8": ("tensorrt",), "fp16": ("tensorrt",), "fp32": ("tensorrt",)},
    default_precisions=("int8", "fp16", "fp32"),
    autocast=("int8", "fp16"),
    profiled=True,
    usual_batch=1,
    settings=("workspace_bytes", "optimization_level", "version_compatible"),  # JetPack has no hardware compatibility
    workspace_bytes=2 << 30,  # the smallest Orin has 8 GB for the processor and the GPU together
)
