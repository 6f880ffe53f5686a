"""x86-64 and aarch64 CPUs: graphs for ONNX Runtime, IR for OpenVINO; parity is measured at the build."""

from export.targets import Target

TARGET = Target(
    summary="x86-64 and aarch64 processors, through ONNX Runtime and OpenVINO",
    device="cpu",
    compilers={
        "fp32": ("onnxruntime", "openvino"),
        # ONNX Runtime 1.31 has no BF16 kernels for convolutions on the CPU.
        "bf16": ("openvino",),
        "int8": ("onnxruntime", "openvino"),
    },
    # Not BF16: most processors at the edge have no such arithmetic, and then it can be neither proved nor run.
    default_precisions=("fp32", "int8"),
)
