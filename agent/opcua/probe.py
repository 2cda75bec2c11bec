"""Whether OPC UA can work, before the line needs it: our server's place, and a PLC's server."""

import os
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.child import Answer, ServiceChild
from agent.listening import listening
from agent.opcua.identity import Identity, is_valid_now
from agent.opcua.plc import MODULE, conversation
from agent.opcua.settings import PlcServerSettings
from engine.errors import ConfigurationError, SinkError

_ANSWER_S: Final = 60.0
"""For a process that has to start, perhaps on a busy machine."""
_FOLDERS: Final = ("trusted", "operators")


def probe_place(identity: Identity, host: str, port: int, *, is_running: bool) -> tuple[str, str]:
    """What our server finds when it starts, and what is missing for clients, if anything.

    Raises `ConfigurationError` and `OSError` for what it cannot start with.
    """
    if not is_running:
        listening(host, port, backlog=1).close()
    said = "its certificate is made at the first start"
    if identity.certificate_file.exists():
        said = identity.check()
    elif not os.access(_there(identity.folder), os.W_OK):
        raise ConfigurationError("opcua.folder", str(identity.folder), "cannot be made or written")
    known = [each for name in _FOLDERS for each in identity.clients(name)]
    place = f"opc.tcp://{host}:{port}/atac, Basic256Sha256 with SignAndEncrypt; {said}"
    return f"{place}; certificates of clients: {len(known)}", _missing(identity)


def _missing(identity: Identity) -> str:
    known = [each for name in _FOLDERS for each in identity.clients(name)]
    rejected = len(identity.clients("rejected"))
    if expired := [each for each in known if not is_valid_now(each)]:
        names = ", ".join(each.subject.rfc4514_string()[:60] for each in expired)
        return f"of them expired: {names}"
    if not known and rejected:
        moved = f"move what may from {identity.folder / 'rejected'} to trusted or operators"
        return f"{rejected} were turned away; {moved}"
    if not known:
        return "none may connect yet: let it try once, and see docs/opcua.md"
    return ""


def _there(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def probe_plc(server: PlcServerSettings, **talk: object) -> Mapping[str, Any]:
    """What the PLC's server has, as the process of `agent.opcua.client` finds it.

    `talk` is what the sink or the trigger would tell that process. Nothing is written. Raises
    `SinkError` where the server, its certificate or its variables cannot do.
    """
    said: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()

    def answer(question: str, values: dict[str, Any]) -> Answer:
        if question != "beat":
            said.put((question, values))
        return None, ()

    setup = conversation(server, only_looks=True, **talk)
    with ServiceChild("opcua-probe", MODULE, setup=setup, feed=None, answer=answer) as child:
        try:
            question, found = said.get(timeout=_ANSWER_S)
        except queue.Empty:
            raise SinkError(f"{server.url}: {child.fault or 'no answer'}") from None
    if question == "away":
        raise SinkError(f"{server.url}: {found['why']}")
    return found
