"""The inference process: opens a bundle and inspects the frames that it receives.

It ends with its parent, and ignores Ctrl-C and SIGTERM: the parent finishes the current parts.
"""

import ctypes
import json
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from time import perf_counter
from typing import Final

import numpy as np
from pydantic import TypeAdapter

from agent.inference.child import BAYER, FIRST_BAYER, PACKET, REQUEST, Memory, Setup
from agent.logs import write_logs
from agent.process import prepare_process
from engine.backends.opening import open_inspector
from engine.bundle import open_bundle
from engine.errors import AtacError, BackendError
from engine.frame import Box, Inspection
from engine.inspector import Inspector, OpenInspector, TakesBayer
from engine.view import ViewSpec, view

_LOG: Final = logging.getLogger("atac_agent.inference")
_PR_SET_PDEATHSIG: Final = 1


def main(connections: Sequence[tuple[socket.socket, Memory]]) -> None:
    """Serve as many connections as the inspector can, until the parent closes them.

    The first packet of the first connection is the setup.
    """
    prepare_process()
    # OpenCV makes its colour tables with the first view; the agent is still starting.
    view(np.zeros((1, 1, 3), np.uint8), Box.whole(1, 1), ViewSpec())
    connection, _ = connections[0]
    packet = connection.recv(PACKET)
    if not packet:  # the agent stopped before it had read its configuration
        return
    setup = TypeAdapter(Setup).validate_json(packet)
    write_logs(setup.log)
    begun = perf_counter()
    try:
        bundle = open_bundle(setup.bundle, signed_by=setup.signed_by, bundle_id=setup.bundle_id)
        opened = open_inspector(
            bundle,
            backend=setup.backend,
            precision=setup.precision,
            fallback=setup.fallback,
            max_pixels=round(setup.max_megapixels * 1e6),
        )
    except AtacError as error:
        _tell(connection, {"error": str(error)})
        return
    with opened as inspector:
        ready = perf_counter()
        inspector.warm_up()
        served = connections[: inspector.workers]
        _tell(
            connection,
            {
                "start_s": ready - begun,
                "pass_s": perf_counter() - ready,
                "workers": len(served),
                "backend": inspector.name,
                "takes_bayer": isinstance(inspector, TakesBayer),
            },
        )
        with ThreadPoolExecutor(len(served), thread_name_prefix="atac-inference") as pool:
            for each, memory in served:
                pool.submit(_serve, inspector, each, memory)


def _serve(inspector: OpenInspector, connection: socket.socket, memory: Memory) -> None:
    memory.lend = inspector.lend
    # However this thread ends, its connection is closed, so that the parent notices at once.
    with connection:
        while request := connection.recv(REQUEST.size):
            _tell(connection, _answer(inspector, memory, request))


def _answer(inspector: Inspector, memory: Memory, request: bytes) -> dict[str, object]:
    size, height, width, channels = REQUEST.unpack(request)
    memory.map(size)
    is_raw = channels >= FIRST_BAYER
    frame_shape = (height, width, channels) if channels and not is_raw else (height, width)
    pixels = memory.pixels(frame_shape)
    try:
        if is_raw and isinstance(inspector, TakesBayer):
            found = inspector.inspect(pixels, BAYER[channels - FIRST_BAYER])
        else:
            found = inspector.inspect(pixels)
    except BackendError as error:
        # Later answers of a runtime or device that has failed cannot be trusted: the parent ends
        # this process, which frees everything in any state.
        return {"failed": str(error)}
    except AtacError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - one part must never stop the line
        _LOG.exception("an inspection failed")
        return {"error": f"{type(error).__name__}: {error}"}
    maps = found.attention, found.score_map
    memory.hold(memory.needed(pixels.nbytes, maps))
    shapes = [each.shape for each in maps]
    for ours, each in zip(memory.maps(pixels.nbytes, shapes), maps, strict=True):
        ours[:] = each
    return _packed(found) | {"size": memory.size, "shapes": shapes}


def _packed(found: Inspection) -> dict[str, object]:
    return {
        "score": found.score,
        "deviation": found.deviation,
        "passes": [asdict(each) for each in found.passes],
        "attention_s": found.attention_s,
        "map_threshold": found.map_threshold,
        "regions": [asdict(each) for each in found.regions],
    }


def _tell(connection: socket.socket, content: dict[str, object]) -> None:
    with suppress(ConnectionError):  # the agent has gone, and with it all who would ask
        connection.send(json.dumps(content).encode()[:PACKET])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A child that hangs must not outlive its parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    main([(socket.socket(fileno=end), Memory(memory)) for end, memory in json.loads(sys.argv[1])])
