"""One registry for all tests of the fleet, and a key pair."""

import pytest

from tests.registry import Keys, RealRegistry


@pytest.fixture(scope="session")
def session_registry(tmp_path_factory):
    with RealRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))
