"""A trained network → one ONNX graph per precision → a bundle, with a gate on decisions."""

from engine.privacy import keep_private

# ONNX Runtime looks once whether it may report, when it is imported; modules of this package do.
keep_private()
