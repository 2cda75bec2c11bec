"""`agent.yaml`: what is wrong is said in one line, with key, value, remedy and place."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cameras.conveyor import ConveyorSettings
from agent.cameras.folder import FolderSettings
from agent.settings import load_config
from engine.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
GOOD = """\
agent: {id: line-3}
bundle: {path: models/bottle}
camera: {type: folder, path: parts}
mqtt: {host: localhost}
"""


@pytest.fixture
def refused(tmp_path):
    """Load a text that must be refused; gives the one line that says why."""

    def load(text: str | bytes) -> str:
        path = tmp_path / "agent.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigurationError) as caught:
            load_config(path)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 400
        return message

    return load


def test_the_shipped_configuration_runs_generated_parts_through_the_bundled_model():
    config = load_config(ROOT / "agent.yaml")
    assert isinstance(config.cameras[0], ConveyorSettings)
    assert config.bundle.path == ROOT / "agent" / "demo_bundle"


def test_every_key_of_the_shipped_configuration_exists_and_none_is_left_out(tmp_path):
    """Keys behind a `#` are put in force: `#camera` blocks one at a time, all others together."""
    text = (ROOT / "agent.yaml").read_text()
    cameras = re.findall(r"^#camera.*\n(?:#  .*\n)*", text, re.MULTILINE)
    shown = re.sub(r"^( *)#(?=[a-z_]+: )(?!camera|product_)", r"\1", text, flags=re.MULTILINE)
    path = tmp_path / "agent.yaml"
    path.write_text(shown)
    config = load_config(path)
    kinds = {camera.type for camera in config.cameras}
    for section in dataclasses.fields(config):
        if section.name in {"services", "products", "product_from"}:
            continue
        found = getattr(config, section.name)
        for field in dataclasses.fields(found[0] if isinstance(found, tuple) else found):
            if section.name == "sinks" and field.name == "type":
                continue
            assert re.search(rf"^ +{field.name}: ", shown, re.MULTILINE), (section, field.name)
    (products,) = re.findall(r"^#products:.*\n(?:#  .*\n)*#product_from.*\n", text, re.MULTILINE)
    in_place = re.sub("^#", "", products, flags=re.MULTILINE)
    path.write_text(re.sub(r"^bundle:\n(?: .*\n)*", lambda _: in_place, shown, flags=re.MULTILINE))
    assert [product.name for product in load_config(path).products] == ["cola", "lemon"]
    start, end = shown.index("camera:"), shown.index("\nline:") + 1
    for camera in cameras:
        written = re.sub("^#", "", camera, flags=re.MULTILINE)
        path.write_text(shown[:start] + written + shown[end:])
        found = load_config(path).cameras
        kinds |= {camera.type for camera in found}
    assert kinds >= {"conveyor", "folder", "video", "genicam"}
    assert [camera.name for camera in found] == ["top", "side"]


def test_paths_start_at_the_file_s_own_folder(tmp_path):
    (tmp_path / "agent.yaml").write_text(GOOD + "ledger: {path: /var/lib/atac/ledger.sqlite}\n")
    config = load_config(tmp_path / "agent.yaml")
    assert config.bundle.path == tmp_path / "models" / "bottle"
    (camera,) = config.cameras
    assert isinstance(camera, FolderSettings)
    assert camera.path == tmp_path / "parts"
    assert config.ledger.path == Path("/var/lib/atac/ledger.sqlite")


def test_a_section_with_all_its_keys_commented_out_keeps_its_defaults(tmp_path):
    (tmp_path / "agent.yaml").write_text(GOOD + "line:\n  # deadline_ms: 5\n")
    assert load_config(tmp_path / "agent.yaml").line.deadline_s is None


def test_the_deadline_comes_from_the_rate_where_it_is_not_given(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(GOOD + "line: {parts_per_minute: 120}\n")
    assert load_config(path).line.deadline_s == 0.5
    path.write_text(GOOD + "line: {parts_per_minute: 120, deadline_ms: 80}\n")
    assert load_config(path).line.deadline_s == 0.08


SEVERAL = """\
cameras:
  - {name: top, type: folder, path: top}
  - name: side
    type: video
    path: side.mp4
    line: {deadline_ms: 80}
"""


def test_each_camera_has_its_name_and_its_own_line_or_the_common_one(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(GOOD.replace("camera: {type: folder, path: parts}\n", SEVERAL))
    config = load_config(path)
    assert [camera.path for camera in config.cameras] == [tmp_path / "top", tmp_path / "side.mp4"]
    lines = {name: line.deadline_s for name, line in config.lines.items()}
    assert lines == {"top": None, "side": 0.08}
    assert config.longest_deadline_s is None
    path.write_text(path.read_text() + "line: {parts_per_minute: 120, fail_safe: pass}\n")
    config = load_config(path)
    assert config.longest_deadline_s == config.lines["top"].deadline_s == 0.5
    # A camera's own line stands in place of the common one, with none of its keys.
    assert [line.fail_safe for line in config.lines.values()] == ["pass", "reject"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("name: side", "name: top"), ["cameras.1.name: 'top'", "give each its own", "line 5"]),
        (("name: top, ", ""), None),
        (("name: side\n    type", "type"), None),
        (("path: side.mp4", "paths: side.mp4"), ["cameras.1.paths", "mean path?", "line 7"]),
        (("type: video", "type: webcam"), ["cameras.1.type: 'webcam'", "video", "line 6"]),
        (("deadline_ms: 80", "deadline_ms: -1"), ["cameras.1.line.deadline_ms: -1", "line 8"]),
        ((SEVERAL, "cameras: []\n"), ["cameras: []: names no camera; write at least one"]),
        ((SEVERAL, "cameras: {type: conveyor}\n"), ["cameras: {", "should be a list", "line 3"]),
        ((SEVERAL, "cameras: [conveyor]\n"), ["cameras.0: 'conveyor'", "should hold keys"]),
        (
            (SEVERAL, "cameras: [{type: conveyor}, {type: conveyor}]\n"),
            ["cameras.1.name: 'main'", "give each its own"],
        ),
    ],
)
def test_several_cameras_that_cannot_work(tmp_path, refused, change, said):
    text = GOOD.replace("camera: {type: folder, path: parts}\n", SEVERAL).replace(*change, 1)
    if said is None:  # one of them may do without a name
        (tmp_path / "agent.yaml").write_text(text)
        assert "main" in load_config(tmp_path / "agent.yaml").lines
        return
    message = refused(text)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("", "liness: 3\n"), ["liness: 3", "did you mean line?", "line 5"]),
        (("", "line: {dedline_ms: 3}\n"), ["line.dedline_ms: 3", "did you mean deadline_ms?"]),
        (
            ("", "line: {deadline_ms: -3}\n"),
            ["line.deadline_ms: -3", "greater than or equal to 0.1", "line 5"],
        ),
        (("", "line: {deadline_ms: soon}\n"), ["line.deadline_ms: 'soon'", "number"]),
        (("", "line: {deadline_ms: '5'}\n"), ["line.deadline_ms: '5'", "number"]),
        (("", "line: {deadline_ms: yes}\n"), ["line.deadline_ms: True", "number"]),
        (("", "line: {deadline_ms: .nan}\n"), ["line.deadline_ms: nan", "finite"]),
        (("", "line: {fail_safe: ignore}\n"), ["line.fail_safe: 'ignore'", "'reject' or 'pass'"]),
        (("", "line: 3\n"), ["line: 3", "deadline_ms"]),
        (("type: folder", "type: webcam"), ["camera.type: 'webcam'", "folder", "conveyor"]),
        (("type: folder, ", ""), ["camera.type: is missing"]),
        (("path: parts", "paths: parts"), ["camera.paths", "did you mean path?", "line 3"]),
        ((", path: parts", ""), ["camera.path: is missing; write it", "line 3"]),
        (("{type: folder, path: parts}", "3"), ["camera: 3: should hold keys", "line 3"]),
        (("{type: folder, path: parts}", "[]"), ["camera: []", "a list goes with cameras"]),
        (("camera: {type: folder, path: parts}\n", ""), ["camera: is missing; write camera.type"]),
        (("type: folder,", "type: folder, name: '',"), ["camera.name: ''", "at least 1"]),
        (("type: folder,", 'type: folder, name: "\\a",'), ["camera.name: '\\x07'", "printed"]),
        (("type: folder,", "type: folder, line: {deadline: 3},"), ["camera.line.deadline: 3"]),
        (("", "cameras: [{type: conveyor}]\n"), ["cameras: [{", "stands beside camera", "line 5"]),
        (("path: parts", "path: 5"), ["camera.path: 5", "path", "line 3"]),
        (("path: parts", "path: parts, loop: true"), ["camera.loop: True", "unknown key"]),
        (("line-3", "3"), ["agent.id: 3", "in quotes"]),
        (("line-3", "a/b"), ["agent.id: 'a/b'", "without"]),
        (("agent: {id: line-3}\n", ""), ["agent: is missing; write agent.id"]),
        (("agent: {id: line-3}\n", "agnet: {id: a}\n"), ["agnet: {", "mean agent?", "line 1"]),
        (("agent: {id: line-3}\n", "colour: red\n"), ["colour: 'red': unknown key"]),
        (("", "agent: {id: b}\n"), ["line 5", "'agent' is written twice"]),
        (("id: line-3", "id: a, id: b"), ["line 1", "'id' is written twice"]),
        (("id: line-3", "id: &a x, name: *a"), ["alias *a"]),
        (("path: parts}", "path: parts"), ["line 4"]),
        (("", "\tline: 3\n"), ["line 5"]),
        (("", "? [a]\n: b\n"), ["line 5"]),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(refused, change, said):
    old, new = change
    message = refused(GOOD.replace(old, new, 1) if old else GOOD + new)
    for part in said:
        assert part in message


def test_the_first_wrong_key_s_line_is_the_one_named(refused):
    message = refused(GOOD.replace("bundle:", "\n\nbundle:") + "ledger:\n  memory_mb: none\n")
    assert "ledger.memory_mb: 'none'" in message
    assert "agent.yaml, line 8" in message


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://admin:hunter2@10.0.0.5/stream",
        "rtsp://admin:hun/ter@hunter2@10.0.0.5/stream",
        "rtsp:/admin:hunter2@10.0.0.5/stream",
        "RTSP://10.0.0.5/user=admin_password=hunter2_channel=1.sdp",
        "http://10.0.0.5/snapshot.cgi?user=admin&pwd=hunter2",
        "admin:hunter2@10.0.0.5:/stream",
        "//admin:hunter2@nas/parts",
        "//nas/parts",
        "C:/parts",
        "D:\\parts\\today",
        "rtsp://admin:" + "x" * 100 + "hunter2@10.0.0.5/stream",
    ],
)
@pytest.mark.parametrize("kind", ["folder", "video"])
def test_an_address_is_no_path_and_its_password_is_not_repeated(refused, kind, address):
    message = refused(GOOD.replace("type: folder, path: parts", f"type: {kind}, path: '{address}'"))
    assert "camera.path" in message
    assert "is an address; write the path of a file or folder" in message
    assert "hunter2" not in message
    assert "hunter2" not in str(ConfigurationError("--good", Path(address), "is not there"))


@pytest.mark.parametrize("host", ["broker:1883", "[::1]", "10.0.0.5:99999"])
def test_a_host_with_a_port_is_refused(refused, host):
    message = refused(re.sub("host: [^}\n]+", f"host: '{host}'", GOOD))
    assert "mqtt.host" in message
    assert "the port has a key of its own" in message


@pytest.mark.parametrize("path", ["a:b.mp4", "line 3: good", "x@y", "12:30:00/part.png"])
def test_a_colon_does_not_make_an_address(tmp_path, path):
    (tmp_path / "agent.yaml").write_text(
        f"agent: {{id: a}}\nbundle: {{path: model}}\ncamera: {{type: folder, path: '{path}'}}\n"
        "mqtt: {host: localhost}\n"
    )
    assert load_config(tmp_path / "agent.yaml").cameras[0].path == tmp_path / path


@pytest.mark.parametrize("text", [" plant/{what}", "plant/{what} "])
def test_spaces_around_a_text_are_refused(refused, text):
    message = refused(GOOD.replace("host: localhost", f"host: localhost, topics: '{text}'"))
    assert "mqtt.topics" in message
    assert "has spaces around it" in message


def test_a_password_is_refused_and_not_repeated(refused):
    message = refused(GOOD.replace("host: localhost", "host: localhost, password: hunter2"))
    assert "mqtt.password" in message
    assert "hunter2" not in message
    assert "password_file" in message


@pytest.mark.parametrize(
    "template",
    ["", "atac/{agent}", "atac/+/{what}", "#/{what}", "{what", "{what}/{site}", "$SYS/{what}",
     "{what.__class__}", "{0}/{what}", "{what}\\0", "{what:d}", "{what:9999999999}", "{what!r}",
     "{what}\\n", "a" * 20_000 + "{what}"],
)  # fmt: skip
def test_templates_of_topics_that_cannot_work(refused, template):
    assert "mqtt.topics" in refused(GOOD.replace("localhost", f'localhost, topics: "{template}"'))


def test_a_topic_written_over_two_lines_is_refused(refused):
    folded = GOOD.replace("{host: localhost}", "\n  host: localhost\n  topics: >\n    a/{what}\n")
    assert "mqtt.topics: 'a/{what}" in refused(folded)


@pytest.mark.parametrize("agent_id", ["", "a/b", "a+", "#", "a:b", "a\\nb", "a\\0", "$SYS"])
def test_agent_ids_that_cannot_be_in_a_topic(refused, agent_id):
    assert "agent.id" in refused(GOOD.replace("line-3", f'"{agent_id}"'))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"- a\n- b\n",
        b"just words",
        b"\xff\xfe\x00",
        b"a: " + b"[" * 5000,
        b"%" * 100,
        b"x: " + b"y" * 2_000_000,
        b"a: 2024-99-99",
        b"agent: {id: a}\n\0",
        b'"x\\ny": 1',
    ],
)
def test_files_that_are_no_configuration_are_refused_in_one_line(refused, data):
    refused(data)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="there is no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_config(tmp_path)


@settings(max_examples=50)
@given(st.text(max_size=200))
def test_no_text_escapes_as_another_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "agent.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigurationError):
        load_config(path)


def test_reading_a_configuration_loads_no_driver():
    code = (
        "import sys; from pathlib import Path; from agent.settings import load_config\n"
        f"load_config(Path({str(ROOT / 'agent.yaml')!r}))\n"
        "heavy = {'cv2', 'sqlite3', 'paho', 'onnxruntime', 'openvino', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


OVERLAPPING = {
    "the same": ("parts", "parts"),
    "the same, written differently": ("parts", "./other/../parts"),
    "one inside the other": ("parts", "parts/left"),
    "the other way round": ("parts/left/new", "parts"),
}


@pytest.mark.parametrize("places", OVERLAPPING.values(), ids=OVERLAPPING.keys())
def test_two_cameras_never_show_the_same_files(refused, places):
    one, other = places
    said = refused(
        "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\ncameras:\n"
        f"  - {{name: left, type: folder, path: {one}}}\n"
        f"  - {{name: right, type: folder, path: {other}}}\n"
    )
    assert "camera left shows" in said
    assert said.startswith("cameras.1.path: ")
    assert "line 6" in said


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("evidence: {folder: in/evidence}", "evidence.folder"),
        ("evidence: {folder: in}", "evidence.folder"),
        ("ledger: {path: in/ledger.sqlite}", "ledger.path"),
    ],
)
def test_nothing_is_written_below_a_folder_of_parts(refused, more, key):
    said = refused(
        "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\n"
        f"camera: {{type: folder, path: in, after_last: watch}}\n{more}\n"
    )
    assert said.startswith(f"{key}: ")
    assert "whose files are the parts of camera main" in said


def test_done_files_stay_outside_and_keys_that_contradict_each_other_are_named(refused):
    text = "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\ncamera: {type: folder, path: in"
    said = refused(f"{text}, after_last: watch, done: move, done_folder: in/done}}\n")
    assert said.startswith("camera.done_folder: ")
    said = refused(f"{text}, done: delete}}\n")
    assert "done: delete needs after_last: watch" in said
    assert said.startswith("camera: ")
