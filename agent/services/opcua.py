"""An OPC UA server beside the line, in a process of its own; see docs/opcua.md."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from agent.child import Answer, RefusedError
from agent.opcua.plc import check_installed
from agent.part import State
from agent.ports import Watched
from agent.services.child_service import ChildService, obeyed
from agent.services.settings import AnyServiceSettings
from agent.settings_values import AnyPath, HostName, Port
from agent.station.status import Status
from engine.spec import spec

_MODULE: Final = "agent.opcua.main"
_INFERENCE: Final = "inference:"


@spec
class OpcuaSettings(AnyServiceSettings):
    """Where the server listens, and the `folder` of its certificates.

    Without `folder` it is `opcua` beside the ledger.
    """

    type: Literal["opcua"] = "opcua"
    listen: HostName = "0.0.0.0"  # noqa: S104 - clients need a certificate that we know
    port: Port = 4840
    folder: AnyPath | None = None

    def place(self, ledger: Path) -> Path:
        """The folder of the certificates."""
        return self.folder or ledger.with_name("opcua")

    @property
    def written_to(self) -> Mapping[str, Path]:
        """The certificates' folder, where it is named."""
        return {} if self.folder is None else {"folder": self.folder}


def uri(agent_id: str) -> str:
    """What the server calls itself."""
    return f"urn:{socket.gethostname()}:atac:{agent_id}"


def open(settings: OpcuaSettings, watched: Watched) -> "OpcuaService":
    """The server of the agent that is `watched`, not entered yet."""
    check_installed("services.type")
    return OpcuaService(settings, watched)


class OpcuaService(ChildService):
    """Runs the server's process, and answers its questions; a context manager."""

    def __init__(self, settings: OpcuaSettings, watched: Watched) -> None:
        config = watched.config
        super().__init__(
            "opcua",
            _MODULE,
            watched,
            setup={
                "host": settings.listen,
                "port": settings.port,
                "folder": settings.place(config.ledger.path),
                "agent_id": config.agent.id,
                "uri": uri(config.agent.id),
            },
            reads_feed=True,
        )

    def _answer(self, question: str, values: dict[str, Any]) -> Answer:
        match question:
            case "status":
                self._wrong = values.get("why")
                return _told(self._watched.status()), ()
            case "rows_after":
                return self._rows_after(values)
            case "reset":
                if not _is_able(self._watched.status()):
                    raise RefusedError("; ".join(self._watched.status().faults))
                return None, ()
            case "pause" | "resume" if self._watched.requests is not None:
                return getattr(self._watched.requests, question)(), ()
            case "trigger" if self._watched.requests is not None:
                announced = {"camera": None, "part_id": values["part_id"]}
                return obeyed(self._watched.requests, "trigger", announced), ()
        raise RefusedError(f"this agent does not obey {question}")


def _told(status: Status) -> dict[str, object]:
    counts = dict.fromkeys((state.value for state in State), 0)
    for camera in status.cameras.values():
        for state, count in camera.counts.items():
            counts[state.value] += count
    return {
        "is_last": status.is_last,
        "is_able": _is_able(status),
        "is_paused": status.is_paused,
        "faults": status.faults,
        "threshold": status.threshold,
        "bundle_id": status.bundle_id,
        "backend": status.backend,
        "epoch": status.epoch,
        "counts": counts,
    }


def _is_able(status: Status) -> bool:
    """Whether parts are inspected, whatever else is wrong."""
    cameras = [camera for camera in status.cameras.values() if not camera.is_removed]
    is_faulty = any(fault.startswith(_INFERENCE) for fault in status.faults)
    return not is_faulty and all(camera.gives_frames for camera in cameras)
