"""Children get what their libraries read, and no password."""

from pathlib import Path

from agent.camera_child.process import CameraChild
from agent.child_environment import child_environment
from agent.inference.start import StartingChild


def test_children_get_what_libraries_read_and_nothing_else():
    given = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "1",
        "BROKER": "s3cret",
        "ATAC_MQTT_PASSWORD": "s3cret",
        "PYTHON_PASSWORD": "s3cret",
        "CREDENTIALS_DIRECTORY": "/run/credentials",
        "NOTIFY_SOCKET": "@systemd",
    }
    assert sorted(child_environment(given)) == ["LC_ALL", "OMP_NUM_THREADS", "PATH"]


def test_no_process_of_the_agent_inherits_the_brokers_password(monkeypatch, eventually):
    monkeypatch.setenv("BROKER", "s3cret")
    camera = CameraChild("folder", {})
    try:
        with StartingChild() as inference:
            for pid in (camera.pid, inference.process.pid):
                environ = Path(f"/proc/{pid}/environ")
                eventually(environ.read_bytes)  # empty until the kernel has laid it out
                environment = environ.read_bytes()
                assert b"PATH=" in environment
                assert b"s3cret" not in environment
    finally:
        camera.close()
