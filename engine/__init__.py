"""What one frame goes through: view, network, attention, box, view, network, score.

Knows nothing of torch, YAML or MQTT; `train`, `calibration` and `agent` are built on it.
"""
