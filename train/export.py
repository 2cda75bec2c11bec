"""A trained network → one ONNX graph per precision → a bundle, with a gate on decisions.

    views uint8 (N, side, side, 3)  →  score_map, attention  float32 (N, h, w)

Every precision runs both passes over good images that training never saw and over known
defects, by every runtime that would run it here, and is compared with its reference in what
matters: verdicts, boxes, how scores rank. An export that does not keep them by ONNX Runtime is
refused, and the bundle stays as it was, unless the user accepts it
(`engine.parity.Parity.objections`).
"""

import io
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import onnx
import onnxruntime
import PIL
import safetensors.torch
import torch
from onnxruntime.quantization import (
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.attention import attention_box
from engine.backends.base import Backend, Runtime, cpu_backends
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.opening import open_backend
from engine.bundle import (
    PARITY,
    SCHEMA_VERSION,
    WEIGHTS,
    Bundle,
    Manifest,
    Precision,
    TrainingRecord,
    open_bundle,
    replace_file,
    sha256,
    write_manifest,
)
from engine.errors import BundleError
from engine.frame import Box, Inspection, Pixels
from engine.methods import MethodSpec, NetworkSpec, open_method
from engine.methods.atac import AtacMethod, atac_of
from engine.parity import (
    PARITY_JSON,
    Parity,
    ThresholdFrom,
    bundle_parity,
    compared,
    provisional_threshold,
)
from engine.score import ScoreSpec
from engine.view import view, zoomed
from train.datasets import SPLIT, SPLIT_JSON, Listed, Source, Split, read_listed
from train.evaluate import auroc
from train.network import AtacNet, TorchBackend
from train.profile import PROFILE_JSON, Profile

PROFILE: Final = "profile.json"
_OPSET: Final = 20
_ORACLE: Final = Runtime(backend="onnxruntime", precision="fp32")
_FILES: Final[dict[Precision, str]] = {
    "fp32": "network.onnx",
    "fp16": "network.fp16.onnx",
    "int8": "network.int8.onnx",
    "int8_symmetric": "network.int8_symmetric.onnx",
}
_INT8_CALIBRATION_IMAGES: Final = 64
_INT8_LEAVES: Final = (
    "head.refine.",
    "head.score.",
    "head.locate.",
    "memory.",
)  # cheap, and they decide box and score: they stay exact, and so does all that follows them


def write_bundle(
    out: Path,
    network: AtacNet,
    profile: Profile,
    reference: ScoreSpec,
    record: TrainingRecord,
    source: Source,
    split: Split,
    *,
    accept_flips: bool = False,
) -> Bundle:
    """Write the fp32 bundle of a trained `network` to folder `out`, which must be new or empty.

    `record.held_out_scores` is filled in here. The folder appears only when it is complete.
    Raises `BundleError` when ONNX and torch do not agree.
    """
    items = _parity_items(split)
    method = _method(profile, reference, network)
    with TorchBackend(network) as backend:
        expected = _inspections(backend, method, source, items)
    unseen = len(split.unseen_good)
    scores = tuple(found.score for found in expected)
    record = replace(record, held_out_scores=scores[:unseen])

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        folder = Path(staging) / out.name
        folder.mkdir()
        files = {
            _FILES["fp32"]: onnx_graph(network, profile),
            WEIGHTS: _weights(network),
            SPLIT: SPLIT_JSON.dump_json(split, indent=1),
            PROFILE: PROFILE_JSON.dump_json(profile, indent=2),
        }
        for name, data in files.items():
            replace_file(folder / name, data)
        bundle = _sealed(folder, method, record, files)
        threshold = provisional_threshold(scores[:unseen], scores[unseen:])
        with OnnxRuntimeBackend(bundle) as backend:
            found = _inspections(backend, method, source, items)
        parity = compared(
            expected,
            found,
            [item.path for item in items],
            compared_with="torch fp32",
            threshold=threshold,
            threshold_from="held-out images",
            auroc_loss=_auroc_loss(expected, found, items),
        )
        if not accept_flips:
            _require_parity(out, "fp32", parity, "--resume --accept-flips")
        files[PARITY] = PARITY_JSON.dump_json({_ORACLE.cpu_name: parity}, indent=2)
        replace_file(folder / PARITY, files[PARITY])
        _sealed(folder, method, record, files)
        folder.replace(out)
    return open_bundle(out)


def add_precision(
    bundle: Bundle,
    precision: Precision,
    source: Source,
    *,
    threshold: float | None = None,
    band: tuple[float, float] | None = None,
    accept_flips: bool = False,
) -> tuple[Bundle, dict[str, Parity]]:
    """Export `precision` from a bundle's weights into the bundle, if its decisions agree.

    `source` must hold the images of the bundle's split. `threshold` is the calibrated one and
    `band` what it is known to; without it the held-out scores give a provisional one. The bundle's
    id changes, and a calibration made before no longer belongs to it. Gives the judgements by the
    names of their runtimes: ONNX Runtime's first, then those of others that are installed.
    Raises `BundleError` where ONNX Runtime's decisions do not agree; the others' are on record, and
    `auto` does not take what it has objections to.
    """
    profile = PROFILE_JSON.validate_json(_part(bundle, PROFILE))
    split = SPLIT_JSON.validate_json(_part(bundle, SPLIT))
    network = load_network(bundle)
    items = _parity_items(split)

    reference_backend: Backend
    if precision == "fp32":
        reference_backend, compared_with = TorchBackend(network), "torch fp32"
        data = onnx_graph(network, profile)
    else:
        reference_backend, compared_with = OnnxRuntimeBackend(bundle), "onnxruntime cpu fp32"
        data = (
            onnx_graph(network, profile, half=True)
            if precision == "fp16"
            else int8_graph(bundle, source, split, symmetric=precision == "int8_symmetric")
        )
    with reference_backend as backend:
        expected = _inspections(backend, bundle.manifest.method, source, items)
    threshold_from: ThresholdFrom = "calibration"
    if threshold is None:
        scores, unseen = [found.score for found in expected], len(split.unseen_good)
        threshold = provisional_threshold(scores[:unseen], scores[unseen:])
        threshold_from = "held-out images"
    manifest = replace(
        bundle.manifest,
        networks={**bundle.manifest.networks, precision: _FILES[precision]},
        files={**bundle.manifest.files, _FILES[precision]: sha256(data)},
    )
    with tempfile.TemporaryDirectory() as staging:
        folder = Path(staging)
        for name in bundle.manifest.files:
            (folder / name).write_bytes(bundle.read(name))
        (folder / _FILES[precision]).write_bytes(data)
        staged = write_manifest(folder, manifest)
        judged = {}
        for runtime in _judges(precision):
            with open_backend(
                staged, backend=runtime.backend, precision=runtime.precision
            ) as backend:
                found = _inspections(backend, bundle.manifest.method, source, items)
            judged[runtime.cpu_name] = compared(
                expected,
                found,
                [item.path for item in items],
                compared_with=compared_with,
                threshold=threshold,
                threshold_from=threshold_from,
                band=band,
                auroc_loss=_auroc_loss(expected, found, items),
            )
            if runtime.backend == "onnxruntime" and not accept_flips:
                oracle = judged[runtime.cpu_name]
                _require_parity(bundle.path, precision, oracle, "--accept-flips")

    # A judgement of an earlier network of this precision must not stay beside those of this one.
    kept = {
        name: parity
        for name, parity in bundle_parity(bundle).items()
        if name.split()[-1] != precision
    }
    report = PARITY_JSON.dump_json(kept | judged, indent=2)
    replace_file(bundle.path / _FILES[precision], data)
    replace_file(bundle.path / PARITY, report)
    manifest = replace(manifest, files={**manifest.files, PARITY: sha256(report)})
    return write_manifest(bundle.path, manifest), judged


def load_network(bundle: Bundle) -> AtacNet:
    """The torch network of a bundle, in evaluation mode, on the CPU."""
    network = AtacNet(PROFILE_JSON.validate_json(_part(bundle, PROFILE)))
    network.load_state_dict(safetensors.torch.load(_part(bundle, WEIGHTS)))
    return network.eval()


def onnx_graph(network: AtacNet, profile: Profile, *, half: bool = False) -> bytes:
    """The network as ONNX, BatchNorm folded into convolutions, any batch size.

    `half` puts the trunk into fp16. The head stays in fp32, a small share of the work: its maps
    decide the box.
    """
    copy = AtacNet(profile)
    copy.load_state_dict({name: tensor.cpu() for name, tensor in network.state_dict().items()})
    copy.eval().requires_grad_(requires_grad=False)
    fold_batch_norm(copy)  # in fp32: small variances would be lost in fp16
    if half:
        copy.trunk.half()
    side = profile.view.side
    views = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it reports the absence of torchvision, which nothing needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            program = torch.onnx.export(
                copy,
                (views,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["views"],
                output_names=["score_map", "attention"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise AssertionError("the dynamo exporter returns a program")
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


def fold_batch_norm(network: nn.Module) -> None:
    """Fold every BatchNorm into the convolution defined just before it; evaluation mode only."""
    for parent in network.modules():
        children = list(parent.named_children())
        for (name, convolution), (norm_name, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent.add_module(name, fuse_conv_bn_eval(convolution, norm))
                parent.add_module(norm_name, nn.Identity())


def int8_graph(bundle: Bundle, source: Source, split: Split, *, symmetric: bool = False) -> bytes:
    """The fp32 network of `bundle` with its convolutions quantised to int8 (QDQ).

    Attention and score stay in fp32.

    Ranges come from training images, whole and zoomed, through `engine.view`; the mean of their
    extremes, so that one odd image does not coarsen them all. Weights are symmetric per channel
    and use 7 bits: on CPUs without VNNI two 8-bit products overflow their 16-bit sum, and scores
    with it. Activations are unsigned with a zero point, which keeps all 8 bits after a ReLU.

    `symmetric` is what TensorRT takes: signed activations whose zero point is 0, weights of all 8
    bits written as QDQ pairs too, and nothing quantised but what a convolution reads.
    """
    views = list(_int8_views(bundle, source, split))
    fp32 = onnx.load_model_from_string(bundle.network("fp32"))
    # The graph needs no preparation: shapes are known and BatchNorm is folded.
    onnx.helper.set_model_props(fp32, {"onnx.quant.pre_process": "onnxruntime.quant"})
    exact: list[str] = []
    of_exact: set[str] = set()
    for node in fp32.graph.node:  # in the order of execution
        if any(name.startswith(_INT8_LEAVES) or name in of_exact for name in node.input):
            exact.append(node.name)
            of_exact.update(node.output)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            fp32,
            target,
            _Views(views),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"] if symmetric else ["Conv", "Relu", "Add", "MaxPool"],
            nodes_to_exclude=exact,
            per_channel=True,
            reduce_range=not symmetric,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": symmetric,
                "AddQDQPairToWeight": symmetric,
                "CalibMovingAverage": True,
                "OpTypesToExcludeOutputQuantization": ["Conv"] if symmetric else [],
                "QuantizeBias": False,
            },
        )
        return target.read_bytes()


def library_versions() -> dict[str, str]:
    """Versions of everything that shapes weights or pixels."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


class _Views:
    """Hands prepared views, one at a time, to ONNX Runtime's int8 calibration."""

    def __init__(self, views: Sequence[Pixels]) -> None:
        self._views = iter(views)

    def get_next(self) -> dict[str, Pixels] | None:
        view = next(self._views, None)
        return None if view is None else {"views": view[None]}


def _int8_views(bundle: Bundle, source: Source, split: Split) -> Iterator[Pixels]:
    """What pass 1 and pass 2 see of training images, known defects first."""
    method = atac_of(bundle)
    items = (*split.train_defective, *split.train_good)[:_INT8_CALIBRATION_IMAGES]
    with OnnxRuntimeBackend(bundle) as backend:
        for item in items:
            pixels = read_listed(source, item)
            whole = view(pixels, Box.around(pixels), method.view)
            yield whole
            attention = backend.run(whole[None])["attention"][0]
            box = attention_box(attention, method.view.box, method.crop)
            if box != method.view.box:
                yield zoomed(pixels, whole, box, method.view)[0]


def _parity_items(split: Split) -> tuple[Listed, ...]:
    """Good images that training never saw, then known defects (else those of the test)."""
    unknown = tuple(item for item in split.test if item.defective)
    return (*split.unseen_good, *(split.train_defective or unknown))


def _inspections(
    backend: Backend, method: MethodSpec, source: Source, items: Sequence[Listed]
) -> list[Inspection]:
    inspector = open_method(method, backend)
    return [inspector.inspect(read_listed(source, item)) for item in items]


def _auroc_loss(
    expected: Sequence[Inspection], found: Sequence[Inspection], items: Sequence[Listed]
) -> float | None:
    defective = np.array([item.defective for item in items])
    if not 0 < defective.sum() < len(items):
        return None
    before, after = (
        auroc(np.array([one.score for one in each], dtype=np.float64), defective)
        for each in (expected, found)
    )
    return before - after


def _judges(precision: Precision) -> tuple[Runtime, ...]:
    """What runs such a network on CPUs, the oracle first; in fp32 it stands for all."""
    others = () if precision == "fp32" else cpu_backends(precision)
    names = dict.fromkeys(("onnxruntime", *others))
    return tuple(Runtime(backend=name, precision=precision) for name in names)


def _require_parity(path: Path, precision: Precision, parity: Parity, options: str) -> None:
    if parity.objections:
        raise BundleError(
            str(path),
            f"{precision} does not decide as {parity.compared_with} does: "
            f"{'; '.join(parity.objections)}; largest score difference "
            f"{parity.max_score_difference:.3g}. Nothing was written, and what the bundle has "
            f"stays in use; to accept it, repeat with {options}",
        )


def _sealed(
    folder: Path, method: MethodSpec, record: TrainingRecord, files: dict[str, bytes]
) -> Bundle:
    """The bundle of `files`, which lie in `folder`: its manifest is written."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        method=method,
        networks={"fp32": _FILES["fp32"]},
        training=record,
        files={name: sha256(data) for name, data in files.items()},
    )
    return write_manifest(folder, manifest)


def _method(profile: Profile, reference: ScoreSpec, network: AtacNet) -> AtacMethod:
    side = profile.view.side
    with torch.inference_mode():
        views = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=network.mean.device)
        maps = network.eval()(views)._asdict()
    return AtacMethod(
        network=NetworkSpec(
            side=side, outputs={name: tuple(each.shape[1:]) for name, each in maps.items()}
        ),
        view=profile.view,
        crop=profile.crop,
        score=reference,
    )


def _weights(network: AtacNet) -> bytes:
    data: bytes = safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    )
    return data


def _part(bundle: Bundle, name: str) -> bytes:
    if name not in bundle.manifest.files:
        raise BundleError(
            str(bundle.path), f"has no {name}, which only bundles of `agent train` carry"
        )
    return bundle.read(name)
