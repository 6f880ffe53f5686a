"""NVIDIA datacenter GPUs, through TensorRT 10 and 11 and, as a second engine, ONNX Runtime's CUDA provider.

As for a Jetson, plans are built where they run. FP8 is not among the precisions: Ampere has none.
"""

from export.targets import Target

TARGET = Target(
    summary="NVIDIA datacenter GPUs through TensorRT and ONNX Runtime CUDA; TensorRT's engines are finished there",
    device="cuda",
    compilers={
        # The fastest first, as for a Jetson.
        "int8": ("tensorrt",),  # ONNX Runtime's CUDA provider has no INT8 convolutions: it would compute in float
        "fp16": ("tensorrt", "onnxruntime"),
        "fp32": ("tensorrt", "onnxruntime"),
    },
    default_precisions=("int8", "fp16", "fp32"),
    autocast=("int8", "fp16"),
    profiled=True,
    usual_batch=8,
    settings=("workspace_bytes", "optimization_level", "version_compatible", "hardware_compatible"),
    triton=True,
)
