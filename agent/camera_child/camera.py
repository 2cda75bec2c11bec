"""What cameras with a child process have in common: it is asked, watched and replaced."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self

from agent.camera_child.process import CameraChild
from agent.camera_child.wire import Message
from agent.cameras.pace import PacedCamera
from agent.ports import CameraContext
from engine.errors import CameraError

_START_S: Final = 60.0
_STOP_S: Final = 0.25


class ChildCamera(PacedCamera, ABC):
    """A camera whose files and decoders are touched by a child alone; `read` is left to add.

    A child that hangs or dies ends as `CameraError`; a new one is made at the next call.
    """

    kind: ClassVar[str]
    """The module of `agent/camera_child` that the child runs."""
    python: ClassVar[str | None] = None
    """The interpreter that the child runs under; `None`: the agent's."""
    environment: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Variables of the child's environment."""
    grace_s: ClassVar[float] = 0.0
    """How long the child may take to end by itself when it is no longer wanted."""
    stuck_s: float = 10.0
    """After so long without a sign the child is ended."""
    asleep_s: float = math.inf
    """The same for a child that sleeps meanwhile, which no busy processor or disk makes it do."""

    def __init__(self, context: CameraContext, *, what: str, interval_s: float = 0.0) -> None:
        super().__init__(context, interval_s=interval_s)
        self._what = what
        self._child: CameraChild | None = None
        self._stuck: list[CameraChild] = []
        self._doing: Message = {}

    @property
    def child_pid(self) -> int | None:
        """The child's process id; `None` while there is none."""
        child = self._child
        return None if child is None else child.pid

    @property
    def silence_s(self) -> float | None:
        """Nobody else needs to watch a read: a child that hangs is noticed here."""
        return None

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self._end_child()
            raise
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self._end_child()

    @abstractmethod
    def connect(self) -> None:
        """Find out whether there is something to read; raises `CameraError`."""

    @abstractmethod
    def child_settings(self) -> dict[str, Any]:
        """What the child is told first."""

    def replied(self, told: Message) -> Message | None:
        """The answer to a question that the child asks; `None` when `told` is no question."""
        del told
        return None

    def failed(self, doing: Message, reason: str) -> Message | None:
        """What comes of a child that ended during `doing`; `None`: the source has gone."""
        del doing, reason
        return None

    def begin(self, request: Message) -> None:
        """Ask for something whose answer is wanted later."""
        if self._child is None:
            self._child = self._new_child()
        self._doing = {}
        self._child.tell(request)

    def ask(self, request: Message | None) -> Message | None:
        """What the child answers; `None` when it is time to stop.

        Without a request, the answer to what was asked before.
        """
        if request is not None:
            self.begin(request)
        assert self._child is not None
        quiet_s = asleep_s = 0.0
        while not self.context.stop.is_set():
            try:
                told = self._child.hear(_STOP_S)
            except ConnectionError as error:
                return self._lost(str(error))
            if told is None:
                quiet_s += _STOP_S
                asleep_s = asleep_s + _STOP_S if self._child.is_asleep() else 0.0
                limit_s = self.stuck_s if self._child.has_spoken else _START_S
                if quiet_s >= limit_s or asleep_s >= self.asleep_s:
                    return self._lost(f"has not answered for {quiet_s:g} s")
                continue
            quiet_s = asleep_s = 0.0
            if "gone" in told:
                raise self.gone(told["gone"])
            if "doing" in told:
                self._doing = told
            elif (reply := self.replied(told)) is not None:
                self._child.tell(reply)
            else:
                return told
        return None

    def picture(self, told: Message) -> Any:
        """The pixels that the child has told of."""
        assert self._child is not None
        return self._child.pixels(tuple(told["shape"]))

    def gone(self, reason: str) -> CameraError:
        """The error of a camera that cannot be read now."""
        return CameraError(f"{self._what} {reason}")

    def _lost(self, reason: str) -> Message:
        self._end_child(grace_s=0.0)
        told = self.failed(self._doing, f"the process that decodes it {reason}")
        if told is None:
            raise self.gone(f"cannot be read: the process that reads it {reason}")
        return told

    def _new_child(self) -> CameraChild:
        self._stuck = [child for child in self._stuck if not child.has_ended()]
        if self._stuck:
            raise self.gone("does not answer; the process that reads it hangs in the system")
        return CameraChild(
            self.kind,
            self.child_settings(),
            python=self.python,
            environment=self.environment,
        )

    def _end_child(self, grace_s: float | None = None) -> None:
        child, self._child = self._child, None
        if child is not None and not child.close(self.grace_s if grace_s is None else grace_s):
            self._stuck.append(child)
