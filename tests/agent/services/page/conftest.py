"""A real browser for the tests of the page."""

import shutil

import pytest


@pytest.fixture(scope="session")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver, binary = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and binary):
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    shown = webdriver.Chrome(options=options, service=Service(driver))
    yield shown
    shown.quit()


@pytest.fixture
def fresh(browser):
    """The browser, at 1280 × 900 in light, logged in nowhere; it must have nothing to complain."""
    shaped(browser, width=1280, scheme="light")
    browser.delete_all_cookies()
    browser.get_log("browser")
    yield browser
    complaints = [
        entry["message"]
        for entry in browser.get_log("browser")
        if not any(word in entry["message"] for word in ("ERR_", "network error", "status of 4"))
    ]
    assert complaints == []


def shaped(browser, *, width, scheme, height=900):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
