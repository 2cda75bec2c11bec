"""Attention map-guided two-stage anomaly detection (Song et al.), learnt from good parts alone."""
