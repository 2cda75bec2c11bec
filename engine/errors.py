"""Every error a user can meet.

    AtacError
    ├── ConfigurationError      a value the user wrote cannot work (exit code 2)
    ├── KindError               no such camera, sink, method, …, or its package cannot be used
    ├── ImageError              one image cannot be used; others may
    │   └── FrameLostError      … or was lost on its way; its part ends as NO_FRAME
    ├── BundleError             a model bundle is missing, damaged, too new or of another make
    │   └── NoBundleError       … or there is none at that place (exit code 2)
    ├── BackendError            a runtime, its driver or its device cannot be used
    ├── InspectionError         the network answered something that is not a score
    │   └── NoAnswerError       … or nothing at all in the time that it had
    ├── CalibrationError        the parts at hand cannot support the promise asked for
    ├── TrainingError           the images at hand, or their numbers, cannot be learnt from
    ├── CameraError             a camera is not ready or has gone; the line retries
    ├── TriggerError            a trigger source is not ready or has gone; the line retries
    ├── SinkError               a receiver of events is away or refuses; its sink is retried
    │   └── BrokerError         … an MQTT broker
    ├── LedgerError             the ledger's file cannot be read or written
    ├── RegistryError           a registry of bundles is away, refuses, or gives what was not asked
    └── DesiredStateError       a desired state is not for this agent, not now, or not signed

Messages say what is wrong, with which value, and what to do about it; a command-line user sees
the message alone, never a traceback.
"""

import re
from typing import Final

_SECRETS: Final = (
    (re.compile(r"(\w:/+)[^'\"]*@"), r"\1…@"),
    (re.compile(r"(\w\w:/+[^/'\"]*[/?])[^'\"]+"), r"\1…"),
    (re.compile(r"[^\s/'\"]+:[^\s/'\"]*@"), "…@"),
)
"""Where people write passwords."""


class AtacError(Exception):
    """Base of all errors this product raises on purpose."""


class ConfigurationError(AtacError):
    """A configuration value cannot work: `key` (dotted path), `value` as written, `remedy`.

    The message leaves out a value of `None`: nothing was written.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        self.key = key
        self.value = value
        self.remedy = remedy
        written = "" if value is None else f"{without_secrets(repr(value))}: "
        super().__init__(_one_line(f"{key}: {written}{remedy}"))


class KindError(AtacError):
    """There is no kind of this type, or the package that adds it cannot be used."""


class ImageError(AtacError):
    """The image at `source` cannot be used, for `reason`."""

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"{source}: {reason}")


class FrameLostError(ImageError):
    """A camera knows that it lost one frame, such as to damage in a video."""


class BundleError(AtacError):
    """The bundle file or folder at `path` cannot be used, for `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class NoBundleError(BundleError):
    """There is no bundle at `path`: the user has named another place, or has yet to make it."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path, "there is no bundle here; name another, or make one with: agent train"
        )


class BackendError(AtacError):
    """A runtime is missing or failed; the message says which part and what to install."""


class InspectionError(AtacError):
    """The network's answer for a frame is not a finite score."""


class NoAnswerError(InspectionError):
    """The network has not answered in the time that it had; the part ends as TIMEOUT."""


class CalibrationError(AtacError):
    """The promise asked for cannot be given from these parts; the message says what would do."""


class TrainingError(AtacError):
    """Training cannot start or go on; the message says which images or numbers are at fault."""


class CameraError(AtacError):
    """A camera is not ready or has gone away; worth retrying."""


class TriggerError(AtacError):
    """A trigger source is not ready or has gone away; worth retrying."""


class SinkError(AtacError):
    """A receiver is away or refuses; `is_refusal` says that waiting alone will not help.

    `retry_s` says how soon another try is worth it, where that is known.
    """

    def __init__(
        self, message: str, *, is_refusal: bool = False, retry_s: float | None = None
    ) -> None:
        self.is_refusal = is_refusal
        self.retry_s = retry_s
        super().__init__(message)


class BrokerError(SinkError):
    """An MQTT broker is away or refuses."""


class LedgerError(AtacError):
    """The ledger's file cannot be read or written by a command; `agent run` goes on without it."""


class RegistryError(AtacError):
    """A registry of bundles is away, refuses, or gives something else; worth retrying.

    With `is_altered` it gave other bytes than those that were asked for.
    """

    def __init__(self, message: str, *, is_altered: bool = False) -> None:
        self.is_altered = is_altered
        super().__init__(_one_line(message))


class DesiredStateError(AtacError):
    """A desired state that an agent must not obey, or cannot; the message says why."""


def without_secrets(text: str) -> str:
    """`text` without the passwords that people write into addresses, before a host or after it."""
    for secret, instead in _SECRETS:
        text = secret.sub(instead, text)
    return text


def _one_line(text: str) -> str:
    """`text` as it can be shown: what a user wrote by mistake may hold anything."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.splitlines()))
