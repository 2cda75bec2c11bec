"""Bundles, and the gate on decisions that every precision must pass.

Every precision inspects good images that training never saw and known defects, by every runtime
that would run it here, and is compared with its reference in what matters: verdicts, boxes, how
scores rank. An export that does not keep them by ONNX Runtime is refused, and the bundle stays as
it was, unless the user accepts it (`engine.parity.Parity.objections`).
"""

import platform
import tempfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import onnx
import onnxruntime
import PIL
import safetensors.torch
import torch
from pydantic import ValidationError

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
from engine.cross_fitted import (
    CROSS_FITTED,
    CROSS_FITTED_JSON,
    PICTURES,
    PICTURES_JSON,
    CrossFitted,
    CrossFittedPart,
)
from engine.errors import BundleError, TrainingError
from engine.frame import Inspection
from engine.likeness import fingerprint, look_alikes
from engine.methods import MethodSpec, open_method
from engine.parity import (
    PARITY_JSON,
    Parity,
    ThresholdFrom,
    bundle_parity,
    compared,
    provisional_threshold,
)
from engine.picture import framed, jpeg
from train.datasets import SPLIT, SPLIT_JSON, Images, Listed, Source, Split
from train.evaluate import auroc
from train.export.graph import onnx_graph
from train.export.int8 import int8_graph
from train.network import Network, TorchBackend
from train.recipes import RECIPE, RECIPE_JSON, RecipeSettings, Trained, open_recipe

_ORACLE: Final = Runtime(backend="onnxruntime", precision="fp32")
_FILES: Final[dict[Precision, str]] = {
    "fp32": "network.onnx",
    "fp16": "network.fp16.onnx",
    "int8": "network.int8.onnx",
    "int8_symmetric": "network.int8_symmetric.onnx",
}
_INSTEAD: Final = 64
"""How many training images are inspected when no good image was held out."""
_PICTURED: Final = 12
"""How many good and how many defective parts a bundle shows, the most doubtful."""
_PICTURE_SIDE: Final = 480


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """A bundle, and what its fp32 network found in the images it may be judged by, by path.

    These are `shown_good` and the known defects that it learnt from.
    """

    bundle: Bundle
    inspections: Mapping[str, Inspection]


def shown_good(split: Split) -> tuple[Listed, ...]:
    """Good images that a training may be judged by: held out, else some that it learnt from."""
    return split.held_out_good or split.train_good[:_INSTEAD]


def write_bundle(
    out: Path,
    trained: Trained,
    settings: RecipeSettings,
    record: TrainingRecord,
    images: Images,
    split: Split,
    *,
    accept_flips: bool = False,
) -> Written:
    """Write the fp32 bundle of a trained network; the folder appears only when it is complete.

    Args:
        out: The folder, which must be new or empty.
        trained: The network, and how the engine runs it.
        settings: Of its recipe.
        record: Of its training; `held_out_scores` is filled in here.
        images: Those of the split.
        split: Who trained, who was held out, who tests.
        accept_flips: Write it even if ONNX and torch do not decide alike.

    Raises:
        BundleError: ONNX and torch do not decide alike.
    """
    items, method = _parity_items(split), trained.method
    with TorchBackend(trained.network) as backend:
        expected = _inspections(backend, method, images, items)
    unseen = len(split.unseen_good)
    scores = tuple(found.score for found in expected)
    record = replace(record, held_out_scores=scores[:unseen])

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        folder = Path(staging) / out.name
        folder.mkdir()
        files = {
            _FILES["fp32"]: onnx_graph(trained.network, method.network),
            WEIGHTS: _weights(trained.network),
            SPLIT: SPLIT_JSON.dump_json(split, indent=1),
            RECIPE: RECIPE_JSON.dump_json(settings, indent=2),
        }
        if trained.cross_fitted is not None:
            cross_fitted = _completed(trained.cross_fitted, images, split, expected)
            pictures = PICTURES_JSON.dump_json(_pictures(cross_fitted, images, split))
            cross_fitted = replace(cross_fitted, pictures_sha256=sha256(pictures))
            files[CROSS_FITTED] = CROSS_FITTED_JSON.dump_json(cross_fitted, indent=1)
            replace_file(folder / PICTURES, pictures)
        for name, data in files.items():
            replace_file(folder / name, data)
        bundle = _sealed(folder, method, record, files)
        threshold = provisional_threshold(scores[:unseen], scores[unseen:])
        others = [item for item in shown_good(split) if item not in items]
        with OnnxRuntimeBackend(bundle) as backend:
            found = _inspections(backend, method, images, items)
            of_others = _inspections(backend, method, images, others)
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
    inspected = zip((*items, *others), (*found, *of_others), strict=True)
    return Written(bundle=open_bundle(out), inspections={item.path: one for item, one in inspected})


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

    The bundle's id changes, and a calibration made before no longer belongs to it.

    Args:
        bundle: One that `agent train` wrote.
        precision: What to make.
        source: Holds the images of the bundle's split.
        threshold: The calibrated one; without it the held-out scores give a provisional one.
        band: What the threshold is known to.
        accept_flips: Write it even if decisions change.

    Returns:
        The bundle, and the judgements by the names of their runtimes: ONNX Runtime's first, then
        those of others that are installed.

    Raises:
        BundleError: ONNX Runtime's decisions do not agree. The others' are on record, and `auto`
            does not take what it has objections to.
        TrainingError: `source` is not what the bundle was trained on.
    """
    split = SPLIT_JSON.validate_json(_part(bundle, SPLIT))
    network, method = load_network(bundle), bundle.manifest.method
    images, items = Images(source), _parity_items(split)
    for item in items:
        if not source.path(item.path).exists():
            raise TrainingError(
                f"verdicts are compared on images that the bundle was trained with, and {item.path}"
                " is not there; give --data, or --good and --defective, as agent train had them"
            )

    reference_backend: Backend
    if precision == "fp32":
        reference_backend, compared_with = TorchBackend(network), "torch fp32"
        data = onnx_graph(network, method.network)
    else:
        reference_backend, compared_with = OnnxRuntimeBackend(bundle), "onnxruntime cpu fp32"
        data = (
            onnx_graph(network, method.network, half=True)
            if precision == "fp16"
            else int8_graph(bundle, network, images, split, symmetric=precision == "int8_symmetric")
        )
    with reference_backend as backend:
        expected = _inspections(backend, method, images, items)
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
                found = _inspections(backend, method, images, items)
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


def load_network(bundle: Bundle) -> Network:
    """The torch network of a bundle, in evaluation mode, on the CPU."""
    try:
        settings = RECIPE_JSON.validate_json(_part(bundle, RECIPE))
    except ValidationError as error:
        raise _of_another_version(bundle, RECIPE) from error
    network = open_recipe(settings).network()
    try:
        network.load_state_dict(safetensors.torch.load(_part(bundle, WEIGHTS)))
    except RuntimeError as error:  # torch's name for tensors that are missing, or left over
        raise _of_another_version(bundle, WEIGHTS) from error
    return network.eval()


def _of_another_version(bundle: Bundle, part: str) -> BundleError:
    return BundleError(
        str(bundle.path / part),
        "is of a recipe that this version does not have; it runs as it is, and training it again "
        "makes other precisions possible",
    )


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


def _parity_items(split: Split) -> tuple[Listed, ...]:
    """Good images that training never saw, then known defects (else those of the test)."""
    unknown = tuple(item for item in split.test if item.defective)
    return (*split.unseen_good, *(split.train_defective or unknown))


def judged_items(split: Split) -> tuple[Listed, ...]:
    """All images that are looked at after training: by the gate, or for the report."""
    return (*_parity_items(split), *shown_good(split))


def _inspections(
    backend: Backend, method: MethodSpec, images: Images, items: Sequence[Listed]
) -> list[Inspection]:
    inspector = open_method(method, backend)
    return [inspector.inspect(images.pixels(item)) for item in items]


def _completed(
    scores: CrossFitted, images: Images, split: Split, held_out: Sequence[Inspection]
) -> CrossFitted:
    """`scores` with the good parts that were held out, the most doubtful parts first.

    Args:
        scores: Of the images that were learnt from, as the recipe gives them.
        images: Those of the split.
        split: Who trained, who was held out.
        held_out: By the deployed network; first the good images that were held out.
    """
    good = [
        *scores.good,
        *(
            CrossFittedPart(
                path=item.path,
                sha256=item.sha256,
                kind=item.kind,
                score=found.score,
                box=found.box if found.zoomed else None,
            )
            for item, found in zip(split.held_out_good, held_out, strict=False)
        ),
    ]
    seen = (*split.train_good, *split.held_out_good)
    return replace(
        scores,
        good=tuple(sorted(good, key=lambda part: part.score, reverse=True)),
        defective=tuple(sorted(scores.defective, key=lambda part: part.score)),
        look_alikes=look_alikes([fingerprint(images.pixels(item)) for item in seen]),
    )


def _pictures(scores: CrossFitted, images: Images, split: Split) -> dict[str, str]:
    """Pictures of the most doubtful parts, with the box that their score comes from."""
    listed = {item.path: item for item in (*split.training, *split.held_out_good)}
    return {
        part.path: b64encode(
            jpeg(framed(images.pixels(listed[part.path]), part.box, max_side=_PICTURE_SIDE))
        ).decode("ascii")
        for part in (*scores.good[:_PICTURED], *scores.defective[:_PICTURED])
    }


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
            f"{parity.max_score_difference:.3g}. Nothing was written, and the bundle stays as it "
            f"was; to accept it, repeat with {options}",
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


def _weights(network: Network) -> bytes:
    data: bytes = safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    )
    return data


def _part(bundle: Bundle, name: str) -> bytes:
    if name not in bundle.manifest.files:
        raise BundleError(
            str(bundle.path), f"has no {name}, which bundles of today's agent train have"
        )
    return bundle.read(name)
