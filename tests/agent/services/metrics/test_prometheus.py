"""What Prometheus makes of it: a real scrape, the dashboard's queries, the alerts."""

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from agent.services import metrics
from agent.services.metrics import MetricsSettings
from agent.services.metrics.exposition import Exposition
from tests.agent.services.metrics.test_exposition import BUSY
from tests.agent.statuses import Newest
from tests.ports import free_port

ROOT = Path(__file__).parents[4]
METRICS = ROOT / "docs" / "metrics"
DASHBOARD = json.loads((METRICS / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def program(name):
    if (found := shutil.which(name)) is None:
        pytest.skip(f"needs {name}: apt-get install prometheus")
    return found


def promtool(*arguments, **options):
    return subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False, **options
    )


def test_promtool_has_nothing_against_the_metrics():
    text = Exposition(lambda: (BUSY, 0.5), lambda: (3, 1)).text().decode()
    done = promtool("check", "metrics", input=text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_alerts_fire_when_they_should_and_only_then():
    done = promtool("test", "rules", "alerts_test.yml", cwd=METRICS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_is_a_configuration_of_prometheus(tmp_path):
    for name in ("prometheus.yml", "alerts.yml"):
        text = (METRICS / name).read_text()
        (tmp_path / name).write_text(text.replace("/etc/prometheus", str(tmp_path)))
    (tmp_path / "atac-token").write_text("s3cret")
    done = promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do():
    (group,) = yaml.safe_load((METRICS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["alert"] in (ROOT / "docs" / "metrics.md").read_text()


@contextmanager
def scraping(folder, agent):
    """A Prometheus that scrapes the agent at this port; gives the function that asks it."""
    port = free_port()
    configuration = yaml.safe_load((METRICS / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    (job,) = configuration["scrape_configs"]
    job["authorization"]["credentials_file"] = str(folder / "token")
    job["static_configs"] = [{"targets": [f"127.0.0.1:{agent}"]}]
    shutil.copy(METRICS / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    process = subprocess.Popen(
        [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
    )

    def ask(query):
        written = urllib.parse.urlencode({"query": query})
        address = f"http://127.0.0.1:{port}/api/v1/query?{written}"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 503:
                    pytest.fail(f"{query}: {error.read().decode()}")
        except OSError:
            pass
        return []  # it is still starting

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


@contextmanager
def working(watched):
    """Parts go by, so that rates are there to be seen."""
    stop = threading.Event()

    def work():
        while not stop.wait(0.05):
            (top,) = watched.latest.cameras.values()
            counts = {state: n + 1 for state, n in top.counts.items()}
            seen = watched.latest.latencies["end_to_end"]
            times = {
                stage: replace(seen, counts=tuple(n + 1 for n in seen.counts), total_s=time.time())
                for stage in ("end_to_end", "wait", "inspect")
            }
            top = replace(top, counts=counts, triggers=sum(counts.values()), deadline_s=0.2)
            watched.latest = replace(watched.latest, cameras={"top": top}, latencies=times)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_every_query_of_the_dashboard_finds_something_in_a_real_scrape(tmp_path, eventually):
    program("prometheus")
    token = tmp_path / "token"
    token.write_text("s3cret")
    token.chmod(0o600)
    watched, port = Newest(BUSY), free_port()
    with (
        metrics.open(MetricsSettings(port=port, token_file=token), watched),
        working(watched),
        scraping(tmp_path, port) as ask,
    ):
        eventually(lambda: ask('count_over_time(atac_faults{job="atac"}[1m]) > 3'), 60)
        assert len(QUERIES) >= 12
        for query in QUERIES:
            shown = query.replace("$__rate_interval", "5m").replace("$instance", ".+")
            eventually(lambda shown=shown: ask(shown), 60)
        assert len(ask('{job="atac", __name__=~"atac_.*"}')) <= 60
        expected = {"AtacFault", "AtacThresholdNotCalibrated", "AtacPromiseBroken"}
        eventually(lambda: expected <= {each["metric"]["alertname"] for each in ask("ALERTS")}, 60)


def test_the_queries_name_only_metrics_that_there_are():
    text = Exposition(lambda: (BUSY, 0.5), lambda: (3, 1)).text().decode()
    for query in [*QUERIES, (METRICS / "alerts.yml").read_text()]:
        for name in re.findall(r"atac_[a-z_]+", query):
            assert re.search(rf"^(# TYPE )?{name}\b", text, re.MULTILINE), name
