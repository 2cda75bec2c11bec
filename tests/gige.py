"""A GigE Vision camera on a cable of its own, where this machine can have one."""

import pytest

from agent.camera_child.fake_gige import Cable, FakeGigeCamera, missing


@pytest.fixture(scope="session")
def cable():
    if (why := missing()) is not None:
        pytest.skip(why)
    with Cable() as cable:
        yield cable


@pytest.fixture
def gige(cable):
    camera = FakeGigeCamera(cable)
    try:
        yield camera.start()
    finally:
        camera.stop()
