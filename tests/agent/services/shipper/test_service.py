"""The shipper's own process, and what it says where a bucket cannot be used."""

import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from agent.part import State
from agent.record.ledger import Ledger
from agent.registry import open_service
from agent.services.shipper.probe import probe
from agent.services.shipper.settings import ShipperSettings
from agent.services.shipper.store import S3Store
from engine.errors import ConfigurationError
from tests.records import add
from tests.s3 import KEYS


class Watched:
    """An agent with a ledger alone."""

    requests = None

    def __init__(self, ledger, path):
        self.feed = ledger.feed
        self.config = SimpleNamespace(
            agent=SimpleNamespace(id="line-3"),
            evidence=SimpleNamespace(near=0.1, folder=None),
            ledger=SimpleNamespace(path=path),
        )


def settings(s3, folder, **changes):
    (folder / "access").write_text(KEYS["aws_access_key_id"] + "\n")
    (folder / "secret").write_text(KEYS["aws_secret_access_key"] + "\n")
    values = {
        "site": "hamburg",
        "bucket": s3.bucket,
        "endpoint": s3.endpoint,
        "access_key_file": folder / "access",
        "secret_key_file": folder / "secret",
        "every_minutes": 0.05,
    }
    return ShipperSettings(**values | changes)


def wait_for(condition):
    until = time.monotonic() + 300  # it is nice, and others are not
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_process_ships_and_says_what_is_wrong(s3, ledger, tmp_path, caplog):
    s3.client.delete_bucket(Bucket=s3.bucket)
    add(ledger, State.OK)
    assert ledger.flush(5)
    service = open_service(settings(s3, tmp_path), Watched(ledger, tmp_path / "ledger.sqlite"))
    try:
        with service:
            wait_for(lambda: service.fault and "bucket" in service.fault)
            assert service.fault == (
                f"shipper: bucket plant at {s3.endpoint}: there is no such bucket; "
                "make it, or correct bucket (NoSuchBucket)"
            )
            arguments = Path(f"/proc/{service.pid}/cmdline").read_bytes()
            assert b"a-secret" not in arguments
            s3.client.create_bucket(Bucket=s3.bucket)
            wait_for(lambda: s3.names("parts/"))
            wait_for(lambda: service.fault is None)
    finally:
        if not s3.client.list_buckets()["Buckets"]:
            s3.client.create_bucket(Bucket=s3.bucket)
    assert "a-secret" not in caplog.text


def test_keys_are_named_and_never_written(s3, ledger, tmp_path):
    with pytest.raises(ValidationError, match="give secret_key_file or secret_key_variable"):
        settings(s3, tmp_path, secret_key_file=None)
    with pytest.raises(ValidationError, match="an address without a path"):
        settings(s3, tmp_path, endpoint="https://key:secret@s3.example")
    missing = settings(s3, tmp_path, secret_key_file=tmp_path / "none")
    with pytest.raises(ConfigurationError, match=r"secret_key_file: .*none"):
        open_service(missing, Watched(ledger, tmp_path / "ledger.sqlite"))


def test_doctor_says_what_would_become_of_parts(s3, tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite"
    watched = Watched(SimpleNamespace(feed=None), path)
    asked = settings(s3, tmp_path)
    said, is_well = probe(asked, watched.config)
    name = "doctor/site=hamburg/agent=line-3.txt"
    assert said == f"bucket plant at {s3.endpoint} takes {name}, and takes it once"
    assert (is_well, s3.names()) == (True, [name])
    with Ledger(path, agent_id="line-3") as ledger:
        add(ledger, *[State.OK] * 3)
        assert ledger.flush(5)
    assert probe(asked, watched.config) == (f"{said}; parts that wait for it: 3", True)

    class AnHourOff(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=1)

    with monkeypatch.context() as patch:
        patch.setattr("agent.services.shipper.probe.datetime", AnHourOff)
        said, is_well = probe(asked, watched.config)
        assert said.endswith("this machine's clock and the bucket's differ by 60 min: set it")
        assert not is_well
    with monkeypatch.context() as patch:
        s3.client.delete_object(Bucket=s3.bucket, Key=name)
        patch.setattr(S3Store, "put", lambda *_: True)  # a service that knows no conditions
        assert "it ignores If-None-Match" in probe(asked, watched.config)[0]
    key = s3.key_without_rights("line-3")
    with s3.asking_for_rights():
        (tmp_path / "access").write_text(key["access_key"])
        (tmp_path / "secret").write_text(key["secret_key"])
        said, is_well = probe(asked, watched.config)
        assert "its key may not write there; allow s3:PutObject" in said
        assert not is_well
    (tmp_path / "shipper").rmdir()
    (tmp_path / "shipper").write_text("a file in its place")
    assert "the cursor could not be kept" in probe(asked, watched.config)[0]
