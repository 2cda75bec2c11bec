import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    open_bundle,
    pixels_sha256,
    replace_file,
    sha256,
    write_manifest,
)
from engine.errors import BundleError, NoBundleError
from tests.tiny_bundle import good_part, tiny_bundle

Edit = Callable[[dict[str, Any]], None]


def edited(folder: Path, edit: Edit) -> None:
    file = folder / MANIFEST
    data = json.loads(file.read_bytes())
    edit(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def test_what_was_written_is_what_is_opened(tmp_path: Path) -> None:
    written = tiny_bundle(tmp_path, training_sha256=("ab" * 32,))
    opened = open_bundle(tmp_path)
    assert opened == written
    assert opened.id == sha256((tmp_path / MANIFEST).read_bytes())
    assert opened.network("fp32") == (tmp_path / "network.onnx").read_bytes()


def test_another_manifest_is_another_bundle(tmp_path: Path) -> None:
    first = tiny_bundle(tmp_path)
    again = write_manifest(tmp_path, replace(first.manifest, created_at="2026-01-01T00:00:00Z"))
    assert again.id != first.id


def test_a_changed_byte_is_refused_with_the_files_name(tmp_path: Path) -> None:
    tiny_bundle(tmp_path)
    file = tmp_path / "network.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"network\.onnx: does not have the hash"):
        open_bundle(tmp_path)


def test_a_file_changed_after_opening_is_refused_when_read(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    (tmp_path / "network.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="does not have the hash"):
        bundle.network("fp32")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    tiny_bundle(tmp_path)
    (tmp_path / "network.onnx").unlink()
    with pytest.raises(BundleError, match=r"network\.onnx: cannot be read"):
        open_bundle(tmp_path)


def test_where_there_is_no_bundle_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("nowhere", "file", "folder"):
        with pytest.raises(NoBundleError, match="there is no bundle here"):
            open_bundle(tmp_path / name)


def test_a_newer_schema_says_update_even_where_it_has_unknown_keys(tmp_path: Path) -> None:
    tiny_bundle(tmp_path)
    edited(tmp_path, lambda data: data.update(schema_version=SCHEMA_VERSION + 1, novelty=True))
    with pytest.raises(BundleError, match="newer than 2; update atac-agent"):
        open_bundle(tmp_path)


def test_an_older_schema_is_refused_in_one_line(tmp_path: Path) -> None:
    tiny_bundle(tmp_path)
    edited(tmp_path, lambda data: data.update(schema_version=1, view=data["method"].pop("view")))
    with pytest.raises(BundleError, match="has schema version 1, older than 2, and is no longer"):
        open_bundle(tmp_path)


INVALID: dict[str, tuple[Edit, str]] = {
    "unknown key": (lambda data: data.update(novelty=1), "novelty"),
    "missing key": (lambda data: data["method"].pop("view"), "view"),
    "wrong type": (lambda data: data["method"]["view"].update(side="wide"), r"view\.side"),
    "out of range": (lambda data: data["method"]["crop"].update(omega=1.5), r"crop\.omega"),
    "zero": (lambda data: data["method"]["score"].update(reference_std=0), "reference_std"),
    "no method": (lambda data: data["method"].pop("type"), "method"),
    "no hash": (lambda data: data["files"].update({"network.onnx": "abc"}), r"files\.network"),
    "unknown precision": (lambda data: data["networks"].update(fp8="network.onnx"), "fp8"),
    "unlisted network": (lambda data: data.update(files={}), "gives no hash for network.onnx"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_manifest_says_where(tmp_path: Path, case: str) -> None:
    edit, message = INVALID[case]
    tiny_bundle(tmp_path)
    edited(tmp_path, edit)
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": NaN}', b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "binary", "NaN", "deep"],
)
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match="is not a valid manifest"):
        open_bundle(tmp_path)


def test_a_huge_manifest_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST).open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(BundleError, match="it is larger than"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
@pytest.mark.parametrize("name", [MANIFEST, "network.onnx"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    bundle = tiny_bundle(tmp_path)
    file = tmp_path / name
    file.unlink()
    if kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    reads: list[Callable[[], object]] = [lambda: open_bundle(tmp_path), lambda: bundle.read(name)]
    for read in reads:
        with pytest.raises(BundleError, match=rf"{name}: cannot be read \(it is (not a reg|a fol)"):
            read()


def test_a_file_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    tiny_bundle(tmp_path)
    os.truncate(tmp_path / "network.onnx", 1 << 40)
    with pytest.raises(BundleError, match=r"network\.onnx: cannot be read \(it is larger than"):
        open_bundle(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/b", "..\\secret", "C:\\secret", "..", ".", ""]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bundle"
    tiny_bundle(folder)
    (tmp_path / "secret").write_bytes(b"secret")
    edited(folder, lambda data: data["files"].update({name: sha256(b"secret")}))
    with pytest.raises(BundleError):
        open_bundle(folder)


def test_a_precision_that_is_not_there_names_the_command(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"has no int8 network \(it has fp32\).*agent export"):
        bundle.network("int8")


def test_replacing_a_file_leaves_no_other_behind(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    replace_file(file, b"old")
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_pixels_are_hashed_by_what_they_show() -> None:
    pixels = good_part(0)
    assert pixels_sha256(pixels) == pixels_sha256(np.asfortranarray(pixels))
    assert pixels_sha256(pixels) != pixels_sha256(pixels[..., 0])
    assert pixels_sha256(pixels[:40]) != pixels_sha256(pixels[:40].reshape(80, 48, 3))
