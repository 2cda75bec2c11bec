"""The shipper's own process, and what it says where a bucket cannot be used."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from agent.part import State
from agent.registry import open_service
from agent.services.shipper.settings import ShipperSettings
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
