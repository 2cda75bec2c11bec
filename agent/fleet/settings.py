"""Where the registry is, and how the agent proves itself to it."""

import ipaddress
import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from agent.settings_values import AnyPath, Count, Share, Text
from engine.spec import spec

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?"
    r"(?P<prefix>(/[a-z0-9]+([._-]+[a-z0-9]+)*)+)/?",
    re.ASCII,
)


def _url(text: str) -> str:
    if _URL.fullmatch(text) is None:
        raise ValueError(
            "should be the address of a registry and the first part of its repositories, such as "
            "https://registry.plant.example/atac"
        )
    return text.rstrip("/")


@spec
class RegistrySettings:
    """A registry of the OCI distribution API, and the repositories of one fleet below `address`.

    The password is the content of `password_file` or of the environment variable
    `password_variable`. It goes to another machine over HTTPS only; `ca_file` has the authority
    that is trusted, in place of the system's.
    """

    address: Annotated[Text, AfterValidator(_url)]
    user: Text | None = None
    password_file: AnyPath | None = None
    password_variable: Text | None = None
    ca_file: AnyPath | None = None

    def __post_init__(self) -> None:
        has_password = self.password_file is not None or self.password_variable is not None
        if has_password != (self.user is not None):
            raise ValueError("user and password_file (or password_variable) need each other")
        if has_password and not self._is_private:
            raise ValueError("passwords must not be sent in clear; write https:// in address")

    @property
    def server(self) -> str:
        """Scheme, host and port."""
        return self.address.removesuffix(self.prefix)

    @property
    def prefix(self) -> str:
        """What all repositories begin with, after a slash."""
        return self._parts["prefix"]

    @property
    def _parts(self) -> re.Match[str]:
        found = _URL.fullmatch(self.address)
        assert found is not None, "checked when it was made"
        return found

    @property
    def _is_private(self) -> bool:
        host = self._parts["host"].strip("[]")
        try:
            return self._parts["scheme"] == "https" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


@spec
class TrialSettings:
    """The band in which a new bundle has to stay for its first `parts`, or it goes back.

    At most the share `max_errors` of them may end without a verdict, and the share of NG ones must
    lie between `least_ng` and `most_ng`.
    """

    parts: Annotated[Count, Field(le=1_000_000)] = 200
    max_errors: Share = 0.02
    least_ng: Share = 0.0
    most_ng: Share = 0.1

    def left(self, ended: int, *, ng: int, errors: int) -> str | None:
        """How parts have left the band, in words; `None`: they have not.

        What is too much is known as soon as there are as many as all `parts` may have.
        """
        of = max(self.parts, ended)
        if errors > self.max_errors * of:
            return f"{errors} of {ended} parts had no verdict; {self.max_errors:.3g} may have none"
        if ng > self.most_ng * of:
            return f"{ng} of {ended} parts were NG; at most {self.most_ng:.3g} may be"
        if ended >= self.parts and ng < self.least_ng * ended:
            return f"{ng} of {ended} parts were NG; at least {self.least_ng:.3g} should be"
        return None
