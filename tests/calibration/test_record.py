import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from calibration import record
from calibration.record import (
    Calibration,
    calibrate,
    calibrated_runtime,
    read_calibration,
    write_calibration,
)
from calibration.scores import Scores
from engine.backends.openvino import OpenVino
from engine.bundle import CALIBRATION, Bundle, open_bundle, sha256
from engine.errors import BackendError, CalibrationError
from tests.tiny_bundle import tiny_bundle

GOOD = Scores(
    values=tuple(1 + (i * 37 % 100) / 100 for i in range(100)),
    names=tuple(f"{i}.png" for i in range(100)),
    hashes=frozenset({"a" * 64, "b" * 64}),
    training=("t1.png",),
    duplicates=("d1.png", "d2.png"),
    unreadable=("u.png: is damaged",),
    look_alikes=3,
    exhibits=(),
)
DEFECTIVE = replace(
    GOOD,
    values=(0.5, 1.5, *[5.0] * 18),
    names=tuple(f"{i}.png" for i in range(20)),
    hashes=frozenset({"c" * 64}),
    training=(),
    duplicates=(),
    unreadable=(),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle", precisions=("fp32", "int8"))


def made(bundle: Bundle, defective: Scores | None = DEFECTIVE, **changes: Any) -> Calibration:
    options: dict[str, Any] = {
        "precision": "fp32",
        "backend": "onnxruntime cpu fp32",
        "max_false_reject": 0.05,
        "confidence": 0.95,
    }
    return calibrate(bundle, GOOD, defective, **(options | changes))


def test_the_record_says_all_that_was_counted(bundle: Bundle) -> None:
    found = made(bundle)
    assert (found.good, found.allowed_exceedances, found.exceedances) == (100, 1, 1)
    assert found.threshold == 1.98
    assert found.good_scores == tuple(sorted(GOOD.values))
    assert (found.defective, found.detected) == (20, 18)
    low, high = found.detection_interval
    assert low < 0.9 < high
    assert found.guaranteed_false_reject <= 0.05
    assert (found.training_images, found.duplicates) == (1, 2)
    assert (found.unreadable, found.look_alikes) == (1, 3)
    assert found.bundle_id == bundle.id
    assert found.created_at.endswith("+00:00")
    assert {"python", "numpy", "atac-agent"} <= set(found.versions)


def test_a_checkout_that_is_not_installed_calibrates(tmp_path, monkeypatch):
    def version(name):
        if name != "numpy":
            raise PackageNotFoundError(name)
        return "2.0"

    monkeypatch.setattr(record, "version", version)
    assert record._versions().keys() == {"python", "numpy"}


def test_without_defects_there_is_no_detection_rate(bundle: Bundle) -> None:
    assert made(bundle, None).detection_interval is None
    assert made(bundle, replace(DEFECTIVE, values=())).detection_interval is None


def test_what_was_written_is_what_is_read(bundle: Bundle) -> None:
    calibration = made(bundle)
    path = write_calibration(bundle, calibration)
    assert path == bundle.path / CALIBRATION
    record = read_calibration(bundle, precision="fp32")
    assert record.calibration == calibration
    assert record.id == sha256(path.read_bytes())


def test_the_record_is_not_part_of_the_bundles_id(bundle: Bundle) -> None:
    write_calibration(bundle, made(bundle))
    assert open_bundle(bundle.path).id == bundle.id


def test_too_few_parts_say_what_was_set_aside(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError) as caught:
        made(bundle, max_false_reject=0.01)
    assert "there are 100: bring 199 more" in str(caught.value)
    assert str(caught.value).endswith("(set aside: 1 training images, 2 duplicates, 1 unreadable)")


def test_a_picture_in_both_folders_is_refused(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match="1 pictures are among the good and the defective"):
        made(bundle, replace(DEFECTIVE, hashes=frozenset({"b" * 64, "c" * 64})))


@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [
        ("onnxruntime cpu fp32", "fp32", "onnxruntime"),
        ("openvino cpu int8", "int8", "openvino"),
        ("tensorrt_rtx NVIDIA H100 fp16, all on the device", "fp16", "tensorrt"),
    ],
)
def test_a_threshold_is_run_with_what_made_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, backend: str, precision: str, expected: str
) -> None:
    monkeypatch.setattr(OpenVino, "is_installed", lambda: True)
    write_calibration(bundle, made(bundle, backend=backend, precision=precision))
    record = read_calibration(bundle)
    found = calibrated_runtime(bundle, record)
    assert (found.backend, found.precision) == (expected, precision)
    # What is named is taken, and `agent run` warns of it.
    named = calibrated_runtime(bundle, record, backend="onnxruntime")
    assert (named.backend, named.precision) == ("onnxruntime", precision)


def test_what_made_the_threshold_is_not_replaced_silently(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVino, "is_installed", lambda: False)
    write_calibration(bundle, made(bundle, backend="openvino cpu fp32"))
    record = read_calibration(bundle)
    said = r"openvino cpu fp32, and OpenVINO is not .*'.\[cpu\]' in .*, or calibrate again"
    with pytest.raises(BackendError, match=said):
        calibrated_runtime(bundle, record)
    assert calibrated_runtime(bundle, record, fallback="onnxruntime").backend == "openvino"
    write_calibration(bundle, made(bundle, backend="torch fp32"))
    with pytest.raises(CalibrationError, match="'torch fp32', which is no backend; calibrate ag"):
        calibrated_runtime(bundle, read_calibration(bundle))


REMEDY = r"agent calibrate --bundle .*bundle --precision fp32 --good DIR"


def test_no_record_names_the_command(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match=f"there is no calibration yet; .*{REMEDY}"):
        read_calibration(bundle, precision="fp32")


def test_the_record_of_another_bundle_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    other = tiny_bundle(tmp_path / "other", gain=7.0)
    write_calibration(bundle, made(other))
    with pytest.raises(CalibrationError, match=f"belongs to another bundle .*{REMEDY}"):
        read_calibration(bundle, precision="fp32")


def test_the_record_of_another_precision_is_refused(bundle: Bundle) -> None:
    write_calibration(bundle, made(bundle, precision="int8"))
    with pytest.raises(CalibrationError, match=f"was made for int8, not for fp32; .*{REMEDY}"):
        read_calibration(bundle, precision="fp32")
    assert read_calibration(bundle, precision="int8").calibration.precision == "int8"


Edit = Callable[[dict[str, Any]], None]
BY_HAND: dict[str, tuple[Edit, str]] = {
    "threshold": (lambda data: data.update(threshold=1.5), "its promise is void"),
    "a score less": (lambda data: data["good_scores"].pop(), "its promise is void"),
    "unsorted": (lambda data: data["good_scores"].reverse(), "its promise is void"),
    "allowed": (lambda data: data.update(allowed_exceedances=100), "its promise is void"),
    "newer schema": (
        lambda data: data.update(schema_version=2, novelty=1),
        "schema version 2, newer than 1",
    ),
    "unknown key": (lambda data: data.update(novelty=1), "novelty"),
    "missing key": (lambda data: data.pop("threshold"), "threshold"),
    "wrong type": (lambda data: data.update(good="many"), "good"),
    "no confidence": (lambda data: data.update(confidence=1.0), "confidence"),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_record_changed_by_hand_is_refused(bundle: Bundle, case: str) -> None:
    edit, message = BY_HAND[case]
    path = write_calibration(bundle, made(bundle))
    data = json.loads(path.read_bytes())
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(CalibrationError, match=f"{message}.*agent calibrate"):
        read_calibration(bundle, precision="fp32")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"threshold": NaN}', b"\xff"])
def test_a_record_that_is_no_json_object_is_refused(bundle: Bundle, data: bytes) -> None:
    (bundle.path / CALIBRATION).write_bytes(data)
    with pytest.raises(CalibrationError, match=f"is not a valid calibration .*{REMEDY}"):
        read_calibration(bundle, precision="fp32")


def test_a_folder_in_the_records_place_is_refused(bundle: Bundle) -> None:
    calibration = made(bundle)
    (bundle.path / CALIBRATION).mkdir()
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_calibration(bundle, precision="fp32")
    with pytest.raises(CalibrationError, match="cannot be written"):
        write_calibration(bundle, calibration)


def test_the_record_is_plain_json(bundle: Bundle) -> None:
    calibration = made(bundle)
    data = json.loads(write_calibration(bundle, calibration).read_bytes())
    assert data == json.loads(json.dumps(asdict(calibration)))
    assert not list(bundle.path.glob("*.partial"))


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_a_calibration_that_is_no_file_is_not_waited_for(bundle: Bundle, kind: str) -> None:
    file = bundle.path / CALIBRATION
    if kind == "a pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(CalibrationError, match=r"cannot be read \(it is not a regular file"):
        read_calibration(bundle)
