"""Makes the pictures of the operator's page in docs/pictures, from a line on generated parts.

    python tools/pictures.py

Needs Chromium and its driver. The line is `agent run` with the demo's bundle and a watched folder,
so that it is known what each part is; people's work on the page is done by clicks.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import cv2
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from agent.demo import BUNDLE
from agent.sinks.mqtt.broker import EmbeddedBroker
from agent.synthetic.flange import DEFECTS, made

ROOT: Final = Path(__file__).parents[1]
PICTURES: Final = ROOT / "docs" / "pictures"
URL: Final = "http://127.0.0.1:8099"
USER: Final = "ada"
PASSWORD: Final = "for the pictures"  # noqa: S105 - of a page that nobody else sees
SEED: Final = 40
PARTS: Final = 241
EVERY: Final = 11
"""So many parts for each defective one."""
CONFIGURATION: Final = """\
agent: {id: line-3}
bundle: {path: bundle}
camera:
  type: folder
  path: parts
  after_last: watch
ledger: {path: ledger.sqlite}
evidence: {folder: evidence, audit: 0.1}
page: {listen: "127.0.0.1:8099"}
check: {good: 2, defective: 2}
"""


def main() -> None:
    """Run the line, show it parts, and take one picture of each screen."""
    with tempfile.TemporaryDirectory(prefix="line-3-") as name, EmbeddedBroker() as broker:
        folder = Path(name)
        (folder / "parts").mkdir()
        shutil.copytree(BUNDLE, folder / "bundle")
        config = folder / "agent.yaml"
        mqtt = f'mqtt: {{host: {broker.host}, port: {broker.port}, version: "3.1.1"}}\n'
        config.write_text(CONFIGURATION + mqtt, encoding="utf-8")
        agent = Path(sys.executable).with_name("agent")
        user = ["page", "add-user", USER, "--role", "admin", "--config", config]
        subprocess.run([agent, *user], input=f"{PASSWORD}\n", text=True, check=True)  # noqa: S603
        line = subprocess.Popen([agent, "run", "--config", config])  # noqa: S603
        try:
            until(answers)
            with browser() as shown:
                take_all(shown, folder / "parts")
        finally:
            line.terminate()
            line.wait()


def take_all(shown: Any, parts: Path) -> None:
    """Every picture, in an order in which each screen has something to show."""
    shown.get(f"{URL}/login")
    shown.find_element(By.NAME, "name").send_keys(USER)
    shown.find_element(By.NAME, "password").send_keys(PASSWORD)
    click(shown, "form .main")
    for number in range(PARTS):
        show(parts, number, defective=is_defective(number))
    shown.get(f"{URL}/line")
    until(lambda: shown.execute_script(TRIGGERS) == str(PARTS))
    show(parts, PARTS, defective=is_defective(PARTS))
    until(lambda: shown.execute_script(WORD).endswith("NG"))
    take(shown, "line", "", 1280, 900)
    take(shown, "line-phone", "", 390, 844, scheme="dark")
    shaped(shown, 1280, 900, "light")
    label(shown, "audit", "good", 12)
    label(shown, "ng", "defective", 7)
    take(shown, "review", "/review", 1280, 900)
    take(shown, "review-phone", "/review", 390, 844, scheme="dark")
    take(shown, "retrain", "/retrain", 1280, 1000, scale=0.75)
    shown.get(f"{URL}/threshold")
    field = shown.find_element(By.NAME, "threshold")
    field.clear()
    field.send_keys("12")
    click(shown, "form button")
    until(lambda: "12" in shown.execute_script(HEADINGS))
    take(shown, "threshold", "", 1280, 1000, scale=0.75)
    shown.get(f"{URL}/golden")
    click(shown, "form .main")
    until(lambda: shown.execute_script(RUNNING))
    for number, sample in enumerate((False, False, True, True), PARTS + 1):
        show(parts, number, defective=sample)
    until(lambda: not shown.execute_script(RUNNING))
    take(shown, "golden", "/golden", 1280, 900, scale=0.75)
    take(shown, "history", "/history", 1280, 900, scale=0.75)
    take(shown, "report", "/report", 1280, 900, scale=0.75)
    take(shown, "system", "/system", 1280, 1000, scale=0.75)


TRIGGERS: Final = "return document.querySelector('[data-state=triggers]')?.innerText"
WORD: Final = "return document.querySelector('.verdict .word')?.innerText ?? ''"
HEADINGS: Final = "return [...document.querySelectorAll('h2')].map((e) => e.innerText).join()"
RUNNING: Final = "return document.querySelector('[hx-post=\"/golden/cancel\"]') !== null"
LOADED: Final = (
    "return document.readyState == 'complete' && [...document.images].every((e) => e.complete"
    " || e.getBoundingClientRect().top > innerHeight)"
)


def is_defective(number: int) -> bool:
    """Whether part `number` is one of the defective ones."""
    return number % EVERY == EVERY - 1


def show(parts: Path, number: int, *, defective: bool) -> None:
    """Put part `number` in front of the camera, whole from its first moment."""
    defect = DEFECTS[number // EVERY % len(DEFECTS)] if defective else None
    whole = parts.with_name("next.jpg")
    cv2.imwrite(str(whole), cv2.cvtColor(made(SEED, number, defect).pixels, cv2.COLOR_RGB2BGR))
    whole.rename(parts / f"A-{number:04d}.jpg")


def label(shown: Any, queue: str, said: str, parts: int) -> None:
    """Say of the first parts of a queue what is true of them."""
    for _ in range(parts):
        shown.get(f"{URL}/review?queue={queue}&label=open")
        for tile in shown.find_elements(By.CSS_SELECTOR, ".tile"):
            number = int(tile.text.partition("A-")[2][:4])
            if is_defective(number) == (said == "defective"):
                tile.click()
                break
        click(shown, f".say.{said}")
        until(lambda: shown.execute_script("return said.innerText.trim() !== ''"))


def take(
    shown: Any,
    name: str,
    path: str,
    width: int,
    height: int,
    *,
    scheme: str = "light",
    scale: float = 1.0,
) -> None:
    """The picture `page-NAME.png` of a screen; without a path of the one that is shown."""
    shaped(shown, width, height, scheme, scale)
    if path:
        shown.get(URL + path)
    time.sleep(1)  # what the screen asks for after it was loaded
    until(lambda: shown.execute_script(LOADED))
    picture = shown.execute_cdp_cmd("Page.captureScreenshot", {})["data"]
    (PICTURES / f"page-{name}.png").write_bytes(b64decode(picture))


def shaped(shown: Any, width: int, height: int, scheme: str, scale: float = 1.0) -> None:
    """Give the screen a size, and light or dark colours."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


def click(shown: Any, what: str) -> None:
    """Click the first element that the CSS selector `what` finds, once it is there."""
    until(lambda: shown.find_elements(By.CSS_SELECTOR, what))
    shown.find_element(By.CSS_SELECTOR, what).click()


def answers() -> bool:
    """Whether the page is there."""
    try:
        with urlopen(f"{URL}/login"):  # noqa: S310 - this machine
            return True
    except OSError:
        return False


def until(is_so: Callable[[], object]) -> None:
    """Wait until it is, for two minutes at most."""
    end = time.monotonic() + 120
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(is_so)
        time.sleep(0.1)


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    shown = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield shown
    finally:
        shown.quit()


if __name__ == "__main__":
    main()
