"""How the agent's log is written: for people, or as JSON with one event a line."""

import json
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

from engine.errors import without_secrets

LogFormat = Literal["text", "json"]
_BURST: Final = 10
_EVERY_S: Final = 10.0
"""After a burst, an event of one kind is written so often; the next one says how many were not."""
_KINDS: Final = 500


def write_logs(form: LogFormat) -> None:
    """Write this process's log to its error output; as JSON, connections and the start as well."""
    handler = logging.StreamHandler()
    handler.addFilter(RateLimit())
    handler.setFormatter(JsonLines() if form == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if form == "json":
        logging.getLogger("atac_agent").setLevel(logging.INFO)


def log_format() -> LogFormat:
    """How this process writes its log."""
    handlers = logging.getLogger().handlers
    return "json" if any(isinstance(each.formatter, JsonLines) for each in handlers) else "text"


def tell_end(message: str) -> bool:
    """Log why the program ends, if its log is JSON; says whether it was."""
    is_json = log_format() == "json"
    if is_json:
        logging.getLogger("atac_agent").critical(message)
    return is_json


class RateLimit(logging.Filter):
    """Holds back events that come again and again, by kind: the logger and its text.

    `now` gives steady seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._seen: OrderedDict[tuple[str, str], tuple[float, float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this event is written; it then has how many like it were not, as `suppressed`."""
        kind, now = (record.name, str(record.msg)), self._now()
        at, left, suppressed = self._seen.pop(kind, (now, float(_BURST), 0))
        left = min(_BURST, left + (now - at) / _EVERY_S)
        is_written = left >= 1
        self._seen[kind] = (now, left - 1, 0) if is_written else (now, left, suppressed + 1)
        if len(self._seen) > _KINDS:
            self._seen.popitem(last=False)
        record.suppressed = suppressed
        return is_written


class JsonLines(logging.Formatter):
    """An event as one line of JSON, without the passwords that addresses may hold."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, in UTC with milliseconds."""
        event: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            "thread": record.threadName,
        }
        if suppressed := _suppressed(record):
            event["suppressed"] = suppressed
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            event["error"] = f"{type(error).__name__}: {without_secrets(str(error))}"
            lines = "".join(traceback.format_exception(error)).splitlines()
            event["traceback"] = "\n".join(map(without_secrets, lines))
        return json.dumps(event, ensure_ascii=True)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("agent: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        suppressed = _suppressed(record)
        return super().format(record) + (f" ({suppressed} more like it)" if suppressed else "")


def _suppressed(record: logging.LogRecord) -> int:
    found = getattr(record, "suppressed", 0)
    return found if isinstance(found, int) else 0
