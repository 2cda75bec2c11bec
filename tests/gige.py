"""A GigE Vision camera on a cable of its own, where this machine can have one."""

import threading

import pytest

from agent.camera_child.fake_gige import Cable, FakeGigeCamera, missing
from agent.cameras.genicam import GenicamCamera, GenicamSettings
from agent.ports import CameraContext

_FAST = {"AcquisitionFrameRate": 200.0, "Width": 64, "Height": 48, "GevSCPSPacketSize": 8000}


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


@pytest.fixture
def context():
    stop = threading.Event()
    watchdog = threading.Timer(30, stop.set)
    watchdog.start()
    yield CameraContext(stop=stop)
    watchdog.cancel()


@pytest.fixture
def opened(gige, context):
    """Makes a camera for the fake one, not entered."""

    def camera(context=context, trigger=None, **features):
        settings = GenicamSettings(device=gige.address, features=_FAST | features, trigger=trigger)
        return GenicamCamera(settings, context)

    return camera
