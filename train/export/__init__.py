"""A trained network → one ONNX graph per precision → a bundle, with a gate on decisions."""
