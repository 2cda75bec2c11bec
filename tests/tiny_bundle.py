"""A real bundle that needs no training: contrast with the surroundings is the score."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.attention import CropSpec
from engine.bundle import (
    PARITY,
    SCHEMA_VERSION,
    Bundle,
    Manifest,
    Precision,
    TrainingRecord,
    sha256,
    write_manifest,
)
from engine.cross_fitted import (
    CROSS_FITTED,
    CROSS_FITTED_JSON,
    PICTURES,
    PICTURES_JSON,
    CrossFitted,
    CrossFittedPart,
)
from engine.frame import Pixels
from engine.methods import NetworkSpec
from engine.methods.atac import OUTPUTS, AtacMethod
from engine.parity import PARITY_JSON, Parity
from engine.picture import jpeg
from engine.score import ScoreSpec
from engine.view import ViewSpec

CELL = 8


def tiny_bundle(
    folder: Path,
    *,
    side: int = 64,
    gain: float = 40.0,
    precisions: tuple[Precision, ...] = ("fp32",),
    training_sha256: tuple[str, ...] = (),
    view: ViewSpec | None = None,
    crop: CropSpec | None = None,
) -> Bundle:
    """Write a bundle into `folder` (made if missing) and open it.

    Its network scores the grey value's distance from its 9×9 surroundings; one map cell is 8×8
    view pixels. `good_part` scores about 1 and is seen whole; `defective_part` scores above 5 and
    is zoomed into. Another `gain` makes another bundle with another id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = _contrast_network(side, gain)
    files = {}
    networks: dict[Precision, str] = {}
    for precision in precisions:
        name = "network.onnx" if precision == "fp32" else f"network.{precision}.onnx"
        (folder / name).write_bytes(network)
        files[name] = sha256(network)
        networks[precision] = name
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_at="2025-01-01T00:00:00+00:00",
        method=AtacMethod(
            network=NetworkSpec(
                side=side, outputs=dict.fromkeys(OUTPUTS, (side // CELL, side // CELL))
            ),
            view=view or ViewSpec(side=side, equalise="never", crop_from="frame"),
            crop=crop or CropSpec(),
            score=ScoreSpec(),
        ),
        networks=networks,
        training=TrainingRecord(
            recipe="line",
            backbone="none",
            pretrained="none",
            seed=0,
            epochs=0,
            good=len(training_sha256),
            defective=0,
            split_sha256=sha256(b""),
            training_sha256=training_sha256,
            held_out_scores=(),
            final_loss=0.0,
            seconds=0.0,
            versions={},
        ),
        files=files,
    )
    return write_manifest(folder, manifest)


def parity(flips: tuple[str, ...] = ()) -> Parity:
    """Three images compared, and the verdicts of `flips` found to differ."""
    return Parity(
        compared_with="onnxruntime cpu fp32",
        images=3,
        threshold=2.0,
        threshold_from="calibration",
        max_score_difference=0.5,
        median_box_iou=1.0,
        least_box_iou=1.0,
        flips=flips,
    )


def judged(bundle: Bundle, **flips: tuple[str, ...]) -> Bundle:
    """`bundle` as after a parity gate; `flips` are by runtime: `openvino_cpu_int8=("a.png",)`."""
    report = {name.replace("_", " "): parity(images) for name, images in flips.items()}
    return _extended(bundle, PARITY, PARITY_JSON.dump_json(report))


def cross_fitted(bundle: Bundle, good: Sequence[float], defective: Sequence[float] = ()) -> Bundle:
    """`bundle` as from a recipe that scores each image without itself; parts have pictures."""

    def parts(scores: Sequence[float], kind: str, first: int) -> tuple[CrossFittedPart, ...]:
        return tuple(
            CrossFittedPart(
                path=f"train/{kind}/{place:03}.png",
                sha256=f"{first + place:064x}",
                kind=kind,
                score=score,
            )
            for place, score in enumerate(scores)
        )

    shown = parts(good, "good", 0)
    pictures = PICTURES_JSON.dump_json(
        {
            part.path: b64encode(jpeg(good_part(place))).decode()
            for place, part in enumerate(shown[:3])
        }
    )
    (bundle.path / PICTURES).write_bytes(pictures)
    found = CrossFitted(
        way="leave_one_out",
        folds=len(good),
        good=shown,
        defective=parts(defective, "scratch", 10_000),
        pictures_sha256=sha256(pictures),
    )
    return _extended(bundle, CROSS_FITTED, CROSS_FITTED_JSON.dump_json(found))


def _extended(bundle: Bundle, name: str, data: bytes) -> Bundle:
    (bundle.path / name).write_bytes(data)
    files = bundle.manifest.files | {name: sha256(data)}
    return write_manifest(bundle.path, replace(bundle.manifest, files=files))


def good_part(seed: int, *, width: int = 96, height: int = 80) -> Pixels:
    """A grey disc on a belt with a little noise, never the same twice: `(H, W, 3)` uint8 RGB."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    top, left = height / 2 + rng.uniform(-4, 4), width / 2 + rng.uniform(-4, 4)
    distance = np.hypot(rows - top, columns - left) / (0.35 * min(height, width))
    # A soft edge, so that the disc's own outline is no contrast.
    grey = 90 + 60 / (1 + np.exp(6 * (distance - 1)))
    grey = grey[..., None] + rng.uniform(-8, 8, 3) + rng.normal(0, 4, (height, width, 3))
    return grey.clip(0, 255).astype(np.uint8)


def defective_part(seed: int, *, width: int = 96, height: int = 80) -> Pixels:
    """A `good_part` with a dark spot near its middle."""
    rng = np.random.default_rng(seed)
    pixels = good_part(seed, width=width, height=height)
    top, left = rng.integers(height // 3, height // 2), rng.integers(width // 3, width // 2)
    pixels[top : top + 6, left : left + 6] //= 6
    return pixels


def _contrast_network(side: int, gain: float) -> bytes:
    def constant(name: str, value: float) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(value, np.float32), name)

    nodes = [
        helper.make_node("Cast", ["views"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["grey"], axes=[3], keepdims=1),
        helper.make_node("Transpose", ["grey"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "white"], ["unit"]),
        helper.make_node(
            "AveragePool", ["unit"], ["around"], kernel_shape=[9, 9], pads=[4, 4, 4, 4]
        ),
        helper.make_node("Sub", ["unit", "around"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["contrast"]),
        helper.make_node(
            "MaxPool", ["contrast"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]
        ),
        helper.make_node("Squeeze", ["cells", "channel"], ["map"]),
        helper.make_node("Mul", ["map", "gain"], ["score_map"]),
        helper.make_node("Sub", ["map", "calm"], ["above"]),
        helper.make_node("Relu", ["above"], ["attention"]),
    ]
    maps = ["N", side // CELL, side // CELL]
    graph = helper.make_graph(
        nodes,
        "contrast",
        [helper.make_tensor_value_info("views", TensorProto.UINT8, ["N", side, side, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, maps)
            for name in ("score_map", "attention")
        ],
        [
            constant("white", 255),
            constant("gain", gain),
            constant("calm", 0.2),
            numpy_helper.from_array(np.array([1], np.int64), "channel"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
