"""The operator's page: a web server in a process of its own, which reads the feed.

    agent ── feed ──▶ history.sqlite ──▶ screens ──▶ browsers
          ◀── requests: label, set_threshold, … ── screens

A screen is one module of `screens/` and one template; `screens/__init__.py` says how.
"""

from typing import TYPE_CHECKING

from agent.services.page.settings import PageSettings

if TYPE_CHECKING:
    from agent.ports import Service, Watched

__all__ = ["PageSettings", "open"]


def open(settings: PageSettings, watched: "Watched") -> "Service":
    """The page of the agent that is `watched`, not entered yet."""
    from agent.services.page.service import PageService  # noqa: PLC0415 - only where it is used

    return PageService(settings, watched)
