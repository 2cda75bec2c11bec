"""An S3 service for all tests here, and a ledger."""

import pytest

from agent.record.ledger import Ledger
from tests.s3 import S3


@pytest.fixture(scope="package")
def _service():
    with S3() as s3:
        yield s3


@pytest.fixture
def s3(_service):
    """The service with an empty bucket."""
    for name in _service.names():
        _service.client.delete_object(Bucket=_service.bucket, Key=name)
    return _service


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line-3") as made:
        yield made
