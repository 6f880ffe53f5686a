"""Convert a float32 ONNX graph to one with QuantizeLinear and DequantizeLinear."""
