"""Views, frames, and what ONNX Runtime makes of them on the host."""

import cv2

from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.methods import open_method
from engine.view import ViewSpec

LINE = ViewSpec(side=64, equalise="after_resize", crop_from="frame", reducing_gap=3.0)
PAPER = ViewSpec(side=64)
PLAIN = ViewSpec(side=64, equalise="never", crop_from="frame")

BAYER = [
    ("bayer_rggb", cv2.COLOR_BayerRGGB2RGB),
    ("bayer_grbg", cv2.COLOR_BayerGRBG2RGB),
    ("bayer_gbrg", cv2.COLOR_BayerGBRG2RGB),
    ("bayer_bggr", cv2.COLOR_BayerBGGR2RGB),
]
"""Raw forms, and how OpenCV calls them."""


def expected(bundle, frames):
    with OnnxRuntimeBackend(bundle) as oracle:
        inspector = open_method(bundle.manifest.method, oracle)
        return [inspector.inspect(each) for each in frames]


def grey(pixels):
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
