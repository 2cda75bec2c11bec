"""How a PLC's OPC UA server is reached; for the sink and the trigger that speak to one."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, model_validator

from agent.settings_values import AnyPath, Text
from engine.spec import spec

_URL: Final = re.compile(r"opc\.tcp://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/\S*)?", re.ASCII)
_NODE: Final = re.compile(r"(ns=\d{1,5};)?[isgb]=.+")


def _url(text: str) -> str:
    if not _URL.fullmatch(text):
        raise ValueError("should be an address such as opc.tcp://192.168.10.20:4840")
    return text


def _node(text: str) -> str:
    if not _NODE.fullmatch(text):
        raise ValueError("""should be a node id, such as ns=3;s="Line"."Count\"""")
    return text


NodeId = Annotated[Text, AfterValidator(_node)]


@spec
class PlcServerSettings:
    """The server at `url`.

    `security` is `sign_and_encrypt` (Basic256Sha256) or `none`. Encrypted, the server must have the
    certificate in `certificate_file`; ours lies in `folder`, and is made there where there is none.
    """

    url: Annotated[Text, AfterValidator(_url)]
    security: Literal["sign_and_encrypt", "none"] = "sign_and_encrypt"
    certificate_file: AnyPath | None = None
    folder: AnyPath = Path("opcua")

    @model_validator(mode="after")
    def _knows_the_server(self) -> "PlcServerSettings":
        if self.security != "none" and self.certificate_file is None:
            raise ValueError("write certificate_file, the server's certificate, or security: none")
        return self
