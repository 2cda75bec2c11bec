"""The page of a thousand lines: brokers, a bucket, and Chromium."""

import time
from contextlib import ExitStack, contextmanager
from urllib.request import urlopen

import pytest
from pydantic import TypeAdapter

from agent.fleet.page.serving import served
from agent.fleet.plan import FleetPlan
from agent.mqtt.link import Link
from agent.part import State
from agent.services.shipper.names import Shipped
from agent.services.shipper.parquet import to_parquet
from tests.agent.events import event
from tests.agent.fleet.page.healths import SITES, digest, messages
from tests.agent.services.page.conftest import shaped
from tests.agent.services.page.test_browser import CONTRASTS, contrast, texts
from tests.conftest import Mosquitto
from tests.ports import free_port
from tests.s3 import KEYS, S3

LINES = 1000
pytestmark = [pytest.mark.broker, pytest.mark.browser]


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.3)
    return found


def parts(agent, hours, ng_every):
    """A part a minute, for so many hours before now."""
    now = time.time_ns()
    for number in range(hours * 60):
        at = now - (hours * 60 - number) * 60_000_000_000
        is_ng = number % ng_every == 0
        yield event(
            agent_id=agent,
            sequence=number + 1,
            position=number + 1,
            triggered_ns=at - 1000,
            decided_ns=at,
            score=1.2 if is_ng else 0.4 + 0.0001 * number,
            threshold=1.0,
            state=State.NG if is_ng else State.OK,
        )


def ship(s3, agent, hours, ng_every):
    by_day = {}
    for part in parts(agent, hours, ng_every):
        by_day.setdefault(time.strftime("%Y-%m-%d", time.gmtime(part.decided_ns / 1e9)), []).append(
            part
        )
    for those in by_day.values():
        shipped = Shipped.holding(those, site="hamburg")
        s3.client.put_object(Bucket=s3.bucket, Key=shipped.name, Body=to_parquet(those, "/tmp"))


@contextmanager
def running(folder, binary, lines=LINES):
    """The address of a page of so many lines in eight sites, all of which have spoken, but one."""
    with ExitStack() as stack:
        s3 = stack.enter_context(S3())
        for number in range(4):
            ship(s3, f"line-{number:03d}", 20, 10 + 10 * number)
        (folder / "access").write_text(KEYS["aws_access_key_id"])
        (folder / "secret").write_text(KEYS["aws_secret_access_key"])
        broker = stack.enter_context(Mosquitto(binary, folder))
        plan = TypeAdapter(FleetPlan).validate_python(
            {
                "registry": {"address": "http://127.0.0.1:9/atac"},
                "key": folder / "key.pem",
                "lines": tuple(f"line-{number:03d}" for number in range(lines + 1)),
                "brokers": tuple(
                    {
                        "host": broker.host,
                        "port": broker.port,
                        "site": site,
                        "topics": f"{site}/{{agent}}/{{what}}",
                    }
                    for site in SITES
                ),
                "bucket": {
                    "bucket": s3.bucket,
                    "endpoint": s3.endpoint,
                    "access_key_file": folder / "access",
                    "secret_key_file": folder / "secret",
                },
                "page": {"listen": f"127.0.0.1:{free_port()}", "folder": folder / "page"},
            }
        )
        with Link(broker.settings, "lines", window=20_000) as link:
            for message in messages(lines):
                link.publish(message)
            yield stack.enter_context(served(plan))


def text(url, path="/fleet"):
    with urlopen(url + path, timeout=10) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def url(mosquitto_binary, tmp_path_factory):
    with running(tmp_path_factory.mktemp("fleet"), mosquitto_binary) as address:
        until(lambda: text(address).count("nothing heard yet") == 2)  # of one line, twice
        until(lambda: 'class="hours"' in text(address, "/fleet?search=line-001"))
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_thousand_lines_are_on_one_screen(fresh, url, scheme, width):
    shaped(fresh, width=width, scheme=scheme)
    fresh.get(f"{url}/fleet")
    across = fresh.execute_script("return document.documentElement.scrollWidth")
    assert across <= width
    bottoms = fresh.execute_script(
        "const all = [...document.querySelectorAll('.map a')];"
        "return all.map((each) => each.getBoundingClientRect().bottom);"
    )
    assert len(bottoms) == LINES + 1
    if width == 1280:
        assert max(bottoms) < 900
    for ink, ground, words in fresh.execute_script(CONTRASTS):
        assert contrast(ink, ground) >= 4.5, (scheme, words, ink, ground)


def test_the_worst_comes_first_and_a_search_finds_the_others(fresh, url):
    fresh.get(f"{url}/fleet")
    first = texts(fresh, ".fleet .what > span")
    assert first[0].endswith("silent")
    assert (
        list(dict.fromkeys(each.split(" ", 1)[-1] for each in first))
        == [
            "silent",
            "faulty",
            "bundle not taken",
            "to be looked at",
            "changing",
            "well",
        ][: len(set(first))]
    )
    fresh.find_element("name", "search").send_keys("line-001\n")
    until(lambda: "search=line-001" in fresh.current_url)
    (row,) = texts(fresh, ".fleet tbody tr")
    assert row.startswith("line-001")
    assert "→" in row  # scores, of Parquet in the bucket
    assert fresh.execute_script("return document.querySelectorAll('.hours rect').length") > 10


def test_a_line_with_products_says_what_became_of_each(fresh, url):
    fresh.get(f"{url}/fleet?search=lemon")
    (row,) = texts(fresh, ".fleet tbody tr")
    assert row.startswith("line-002")
    assert "2 products" in row
    cola, lemon = texts(fresh, ".fleet [data-name=Bundle] small:has(code)")
    assert cola == f"cola {digest('bundle 1')[:8]} in force"
    assert lemon == f"lemon {digest('bundle 3')[:8]} on trial, wants {digest('bundle 1')[:8]}"
