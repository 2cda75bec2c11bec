"""`agent calibrate` from the command line."""

import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from agent import cli
from agent.commands.calibrate import share
from calibration.record import read_calibration
from calibration.report import REPORT
from engine.bundle import CALIBRATION, Bundle, open_bundle, pixels_sha256
from engine.errors import ConfigurationError
from tests.tiny_bundle import cross_fitted, defective_part, good_part, judged, tiny_bundle

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def calibrate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["agent", "calibrate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        unusual = [line for line in printed.err.splitlines(True) if not line.startswith("scoring ")]
        return int(end.value.code or 0), printed.out, "".join(unusual)

    return call


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(
        tmp_path / "bundle",
        precisions=("fp32", "int8"),
        training_sha256=(pixels_sha256(good_part(1000)),),
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return folder(tmp_path / "good", [good_part(seed) for seed in range(62)])


def folder(path: Path, pictures: list) -> Path:
    path.mkdir()
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(path / f"{number:03}.png")
    return path


def test_the_answer_is_a_promise_and_two_files(
    calibrate: Call, bundle: Bundle, good: Path, tmp_path: Path
) -> None:
    (tmp_path / "defective").mkdir()
    for kind, seeds in (("spot", range(4)), ("dent", range(4, 8))):
        folder(tmp_path / "defective" / kind, [defective_part(i) for i in seeds])
    code, out, err = calibrate(
        "--bundle", bundle.path, "--good", good, "--defective", tmp_path / "defective",
        "--max-false-reject", "5%",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "Found by type: dent 4 of 4, spot 4 of 4." in out
    assert out.startswith(
        "Of 100 defects like yours, about 100 will be found (8 defects: 63 to 100); of 1 000 good "
        "parts at most 50 will be rejected.\n"
        "At most 5 % of good parts will be rejected, with 95 % confidence: 0 of n=62 good parts"
    )
    assert "8 of 8 defective parts are detected" in out
    assert " threshold " in out
    assert "WARNING" not in out
    record = read_calibration(bundle, precision="fp32").calibration
    runtime = "openvino" if find_spec("openvino") else "onnxruntime"
    assert record.backend == f"{runtime} cpu fp32"
    assert f"Scored by {record.backend}, as agent run will." in out
    assert "n=62" in (bundle.path / REPORT).read_text(encoding="utf-8")


def test_machines_get_json_and_nothing_else(calibrate: Call, bundle: Bundle, good: Path) -> None:
    code, out, err = calibrate(
        "--bundle", bundle.path, "--good", good, "--max-false-reject", "0.05",
        "--precision", "int8", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    answer = json.loads(out)
    record = read_calibration(bundle, precision="int8")
    assert answer["id"] == record.id
    assert answer["threshold"] == record.calibration.threshold
    assert answer["precision"] == "int8"
    assert answer["warnings"] == []
    assert Path(answer["record"]).name == CALIBRATION
    assert Path(answer["report"]).name == REPORT


@pytest.mark.parametrize(
    ("asked", "scored_by"),
    [
        ((), "onnxruntime cpu int8"),
        (("--precision", "fp32", "--backend", "onnxruntime"), "onnxruntime cpu fp32"),
    ],
)
def test_the_fastest_that_keeps_the_verdicts_scores_the_parts(
    calibrate: Call, bundle: Bundle, good: Path, asked: tuple[str, ...], scored_by: str
) -> None:
    judged(bundle, onnxruntime_cpu_int8=())
    options = ("--bundle", bundle.path, "--good", good, "--max-false-reject", "5%", "--json")
    code, out, err = calibrate(*options, *asked)
    assert (code, err) == (0, "")
    assert json.loads(out)["backend"] == scored_by
    assert json.loads(out)["precision"] == scored_by.rsplit(maxsplit=1)[-1]


def test_what_does_not_count_is_warned_of(calibrate: Call, bundle: Bundle, good: Path) -> None:
    Image.fromarray(good_part(1000)).save(good / "learnt.png")
    Image.fromarray(good_part(0)).save(good / "twice.png")
    (good / "broken.jpg").write_bytes(b"")
    code, out, _ = calibrate("--bundle", bundle.path, "--good", good, "--max-false-reject", "5%")
    assert code == 0
    assert "n=62" in out
    warnings = [line for line in out.splitlines() if line.startswith("WARNING: ")]
    assert [name in line for name, line in zip(
        ("learnt.png", "twice.png", "broken.jpg"), warnings, strict=True
    )] == [True] * 3  # fmt: skip


def test_too_few_parts_are_refused_and_nothing_is_written(
    calibrate: Call, bundle: Bundle, good: Path
) -> None:
    code, out, err = calibrate("--bundle", bundle.path, "--good", good, "--max-false-reject", "1%")
    assert (code, out) == (1, "")
    assert "needs 299 good parts that training has not seen; there are 62: bring 237 more" in err
    assert err.count("\n") == 1
    assert not (bundle.path / CALIBRATION).exists()
    assert not (bundle.path / REPORT).exists()


def test_without_a_limit_the_parts_carry_what_they_can(
    calibrate: Call, bundle: Bundle, good: Path
) -> None:
    code, out, _ = calibrate("--bundle", bundle.path, "--good", good, "--json")
    answer = json.loads(out)
    assert (code, answer["max_false_reject"], answer["proved"]) == (0, 0.05, True)


def test_parts_that_trained_set_the_threshold_where_each_was_scored_without_itself(
    calibrate: Call, bundle: Bundle
) -> None:
    cross_fitted(bundle, [2 - i / 200 for i in range(160)], [1.9, 5.0, 6.0])
    code, out, err = calibrate("--bundle", bundle.path)
    assert (code, err) == (0, "")
    assert out.startswith(
        "Of 100 defects like yours, about 66 will be found (3 defects: 9 to 99); of 1 000 good "
        "parts at most 30 should be rejected.\n"
        "At most 3 % of good parts are expected to be rejected, estimated with the bound of 95 % "
        "confidence and not proved: 1 of n=160 good parts"
    )
    record = read_calibration(open_bundle(bundle.path)).calibration
    assert (record.threshold, record.cross_fitted, record.is_proved) == (1.995, 160, False)
    assert (record.defective, record.cross_fitted_defective) == (3, 3)
    assert record.precision == "fp32"
    page = (bundle.path / REPORT).read_text(encoding="utf-8")
    assert "good/001.png" in page
    assert "The estimate takes scores" in page


def test_enough_parts_that_are_new_are_a_proof_and_come_first(
    calibrate: Call, bundle: Bundle, good: Path
) -> None:
    cross_fitted(bundle, [2 - i / 200 for i in range(260)], [1.9, 5.0, 6.0])
    code, out, _ = calibrate("--bundle", bundle.path, "--good", good, "--json")
    answer = json.loads(out)
    assert (code, answer["good"], answer["proved"]) == (0, 62, True)
    # More than they carry is asked for: all count, and nothing is proved.
    code, out, _ = calibrate(
        "--bundle", bundle.path, "--good", good, "--max-false-reject", "1%", "--json"
    )
    answer = json.loads(out)
    assert (answer["good"], answer["cross_fitted"], answer["proved"]) == (322, 260, False)
    assert answer["costs"]["prices"][2]["max_false_reject"] == 0.01
    code, _, err = calibrate(
        "--bundle", bundle.path, "--good", good, "--max-false-reject", "1%", "--strict"
    )
    assert (code, "there are 62: bring 237 more" in err) == (1, True)
    code, _, err = calibrate("--bundle", bundle.path, "--max-false-reject", "1%")
    assert (code, "there are 260, all of them from training: bring 39" in err) == (1, True)
    code, _, err = calibrate("--bundle", bundle.path, "--strict")
    assert (code, "--good: is not given" in err) == (2, True)
    # They are scores of fp32.
    code, _, err = calibrate("--bundle", bundle.path, "--precision", "int8")
    assert (code, "scored its parts in fp32 on a CPU, not in int8" in err) == (2, True)


def test_parts_that_fall_below_the_number_when_set_aside_are_refused(
    calibrate: Call, bundle: Bundle, tmp_path: Path
) -> None:
    pictures = [good_part(seed) for seed in range(58)] + [good_part(1000)]
    code, _, err = calibrate(
        "--bundle", bundle.path, "--good", folder(tmp_path / "few", pictures),
        "--max-false-reject", "5%",
    )  # fmt: skip
    assert code == 1
    assert "there are 58: bring 1 more" in err
    assert "set aside: 1 training images" in err


def test_a_part_that_is_good_and_defective_is_refused(
    calibrate: Call, bundle: Bundle, good: Path
) -> None:
    code, _, err = calibrate(
        "--bundle", bundle.path, "--good", good, "--defective", good, "--max-false-reject", "5%"
    )
    assert code == 1
    assert "62 pictures are among the good and the defective parts" in err


CONFIGURATION = """
agent: {{id: test}}
bundle: {{path: {bundle}}}
camera: {{type: folder, path: {folder}, after_last: end}}
mqtt: {{host: localhost}}
"""


def test_several_cameras_give_the_parts_in_turns(
    calibrate: Call, bundle: Bundle, good: Path, tmp_path: Path
) -> None:
    few = folder(tmp_path / "few", [good_part(seed) for seed in range(100, 103)])
    (few / "001.png").write_bytes(b"no picture")
    config = tmp_path / "agent.yaml"
    one = CONFIGURATION.format(bundle=bundle.path, folder=good)
    camera = next(line for line in one.splitlines() if line.startswith("camera: "))
    other = camera.replace("camera: {", "{name: few, ").replace(str(good), str(few))
    several = f"cameras: [{camera.removeprefix('camera: ')}, {other}]"
    config.write_text(one.replace(camera, several), encoding="utf-8")
    code, out, _ = calibrate(
        "--config", config, "--frames", 64, "--max-false-reject", "5%", "--json"
    )
    assert code == 0
    # Three of the folder with few, one of them damaged; all others come from the first.
    assert json.loads(out)["good"] == 63
    assert json.loads(out)["unreadable"] == 1


def test_the_configured_camera_gives_the_parts(
    calibrate: Call, bundle: Bundle, good: Path, tmp_path: Path
) -> None:
    (good / "zzz.png").write_bytes(b"broken")
    config = tmp_path / "agent.yaml"
    config.write_text(CONFIGURATION.format(bundle=bundle.path, folder=good), encoding="utf-8")
    code, out, _ = calibrate(
        "--config", config, "--frames", 100, "--max-false-reject", "5%", "--json"
    )
    assert code == 0
    answer = json.loads(out)
    assert (answer["good"], answer["unreadable"]) == (62, 1)
    assert answer["bundle_id"] == bundle.id
    code, out, _ = calibrate(
        "--config", config, "--frames", 60, "--max-false-reject", "5%", "--json"
    )
    assert json.loads(out)["good"] == 60


def test_options_that_contradict_each_other_are_wrong_use(
    calibrate: Call, bundle: Bundle, good: Path, tmp_path: Path
) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text(CONFIGURATION.format(bundle=bundle.path, folder=good), encoding="utf-8")
    cases = {
        "--bundle": ["--good", good],
        "--good": ["--bundle", bundle.path],
        "--frames": ["--config", config],
    }
    for option, arguments in cases.items():
        code, _, err = calibrate(*arguments)
        assert (code, err.split(":")[1].strip()) == (2, option)
    for option, value in (
        ("--bundle", bundle.path),
        ("--good", good),
        ("--backend", "auto"),
        ("--precision", "fp32"),
    ):
        code, _, err = calibrate("--config", config, "--frames", 60, option, value)
        assert code == 2
        assert option in err
        assert "does not go with --config" in err
    code, _, err = calibrate("--bundle", bundle.path, "--good", good, "--frames", 60)
    assert code == 2
    assert "goes with --config" in err


def test_folders_without_parts_are_wrong_use(
    calibrate: Call, bundle: Bundle, good: Path, tmp_path: Path
) -> None:
    for option, path, reason in (
        ("--good", tmp_path / "nowhere", "there is no such folder"),
        ("--good", bundle.path, "there are no images below it"),
    ):
        code, _, err = calibrate("--bundle", bundle.path, option, path)
        assert (code, reason in err) == (2, True)
    code, _, err = calibrate(
        "--bundle", bundle.path, "--good", good, "--defective", bundle.path,
        "--max-false-reject", "5%",
    )  # fmt: skip
    assert code == 2
    assert "--defective" in err


def test_what_is_left_out_is_said_and_a_folder_that_cannot_be_read_is_refused(
    calibrate: Call, bundle: Bundle, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (good / "@eaDir").mkdir()
    for name in (".hidden.png", "@eaDir/000.png", "one.avif", "two.jfif"):
        (good / name).write_bytes(b"x")
    arguments = ("--bundle", bundle.path, "--good", good, "--max-false-reject", "5%")
    code, out, err = calibrate(*arguments, "--json")
    assert code == 0, err
    left_out = json.loads(out)["left_out"]
    assert sorted(left_out.values()) == [1, 1, 2]
    said = [line for line in err.splitlines() if "left out" in line]
    assert len(said) == 1
    assert "2 images of a format that is not read (first: one.avif)" in said[0]

    (good / "more").mkdir()
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith("more") and allowed(path, mode)
    )
    code, _, err = calibrate(*arguments)
    assert code == 2
    assert "1 of its folders cannot be read, the first is more: Permission denied" in err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1%", 0.01),
        ("1 %", 0.01),
        (" 0.5% ", 0.005),
        ("0.01", 0.01),
        (".05", 0.05),
        ("99.9%", 0.999),
    ],
)
def test_shares_are_read_as_people_write_them(text: str, value: float) -> None:
    assert share("--confidence", text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "%", "1", "5", "0", "0%", "100%", "-1%", "1%%", "1,5%", "nan", "inf", "1e-2", "１%", "a"],
)
def test_other_shares_are_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--max-false-reject: .* as 1% or 0\.01$"):
        share("--max-false-reject", text)


def test_names_that_are_no_unicode_cost_no_score(
    calibrate: Call, bundle: Bundle, good: Path, tmp_path: Path
) -> None:
    defective = folder(tmp_path / "defective", [defective_part(seed) for seed in range(8)])
    for place in (good, defective):
        for file in sorted(place.iterdir()):
            file.rename(place / os.fsdecode(b"caf\xe9-" + file.name.encode()))
    code, out, err = calibrate(
        "--bundle", bundle.path, "--good", good, "--defective", defective,
        "--max-false-reject", "5%",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert read_calibration(bundle).calibration.good == 62
    assert "caf\\udce9-" in out
    assert "caf\\udce9-" in (bundle.path / REPORT).read_text()
