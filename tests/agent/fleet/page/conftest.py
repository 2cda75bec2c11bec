"""The browser of the operator's page."""

from tests.agent.services.page.conftest import browser, fresh  # noqa: F401 - fixtures
