"""The TensorRT family: what a plan is built from, and the one compiler for TensorRT 10, 11 and RTX.

Torch-free and ONNX-free, so that a device can finish a bundle. The vendor's package is imported when it is needed.
"""
