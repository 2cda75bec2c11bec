"""The operator's loop on real images: run, label, retrain, replay, promote; what it has brought.

    python -m benchmarks.operator_loop --data ../shared/data --weights resnet18_layer3.safetensors \
        --out runs/loop --result benchmarks/results/operator_loop.json

mvtec_pill is parted at random by the seed: images to learn from with ten known defects, images that
pass the line, and images that nobody labels. The line runs with the page; 30 of its alarms and 30
parts of the audit are labelled over the page's own address, as their folders say. `agent retrain`
trains with them, `agent promote` puts the bundle in force. Both bundles judge the images that
nobody has labelled, each by its own threshold, and the AUROC tells what the thresholds hide.
"""

import argparse
import http.client
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np

from agent.services.page.access import COOKIE, USERS, Access, Role
from benchmarks.broker import mosquitto
from benchmarks.machine import described, write_result
from calibration.bound import interval
from calibration.record import calibrated_runtime, read_calibration
from engine.backends.opening import open_inspector
from engine.bundle import open_bundle
from engine.image import read_image
from train.evaluate import auroc

_AGENT: Final = [sys.executable, "-c", "from agent.cli import main; main()"]
_LEARNT, _CALIBRATE, _UNSEEN_GOOD = 128, 62, 43
_KNOWN, _UNSEEN_DEFECTIVE = 10, 71
_LABELS: Final = 30
_PASSWORD: Final = "a password for a benchmark"  # noqa: S105 (of a page that lives for minutes)
_PORT: Final = 8479


def main() -> None:
    """Run the loop once for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--recipe", default="line")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    runs = []
    for seed in given.seeds:
        folder = given.out / f"seed-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        runs.append(loop(given, seed, folder))
        result = {
            "machine": described(),
            "set": "mvtec_pill",
            "recipe": given.recipe,
            "backbone": given.backbone,
            "epochs": given.epochs,
            "labels": {"alarms": _LABELS, "audit": _LABELS},
            "runs": runs,
        }
        write_result(result, given.result)


def loop(given: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """The whole loop for one seed, in `folder`."""
    truths = parted(given.data / "mvtec_pill", seed, folder)
    options = ["--recipe", given.recipe, "--backbone", given.backbone]
    options += ["--backbone-weights", str(given.weights), "--seed", str(seed)]
    options += [] if given.epochs is None else ["--epochs", str(given.epochs)]
    first, learn = folder / "bundle", folder / "learn"
    run("train", "--good", learn / "good", "--defective", learn / "defective",
        "--defects", _KNOWN, "--out", first, *options)  # fmt: skip
    run("calibrate", "--bundle", first, "--good", learn / "calibration")
    (folder / "agent.yaml").write_text(
        "agent: {id: loop}\nbundle: {path: bundle}\n"
        f"camera: {{type: folder, path: stream, after_last: watch}}\n"
        "mqtt: {host: 127.0.0.1, port: 1, drain_s: 0}\n"
        "evidence: {folder: evidence, audit: 0.5}\n"
        f"services: [{{type: page, listen: '127.0.0.1:{_PORT}'}}]\n"
    )
    with Access(folder / "page" / USERS, idle_s=3600) as access:
        access.add_user("ada", _PASSWORD, Role.OPERATOR)
    before = judged(first, folder / "unseen")
    labelled = run_and_label(folder, truths, seed)
    run("retrain", "--config", folder / "agent.yaml", "--base", learn, "--out", folder / "second",
        *options)  # fmt: skip
    comparison = json.loads(
        run(
            "compare",
            "--config",
            folder / "agent.yaml",
            "--bundle",
            folder / "second" / "bundle",
            "--report",
            folder / "comparison.html",
            "--json",
        )
    )
    right = Counter(
        (one["state"], one["new_state"], truths[Path(one["file"]).name.split("_")[1]])
        for one in comparison["changed"]
    )
    run("promote", folder / "second" / "bundle", "--config", folder / "agent.yaml",
        "--why", "learnt 60 labels", "--by", "ada")  # fmt: skip
    after = judged(folder / "bundle", folder / "unseen")
    return {
        "seed": seed,
        "labelled": labelled,
        "replayed": comparison["judged"],
        "changed": {" ".join(key): n for key, n in right.items()},
        "before": before,
        "after": after,
    }


def parted(data: Path, seed: int, folder: Path) -> dict[str, str]:
    """Part the set at random; gives what each part of the stream really is, by its id."""
    draw = random.Random(seed)
    good = sorted((data / "train" / "good").iterdir()) + sorted((data / "test" / "good").iterdir())
    defective = sorted(
        path for kind in (data / "test").iterdir() if kind.name != "good" for path in kind.iterdir()
    )
    draw.shuffle(good)
    draw.shuffle(defective)
    places = {
        "learn/good": good[:_LEARNT],
        "learn/calibration": good[_LEARNT : _LEARNT + _CALIBRATE],
        "unseen/good": good[-_UNSEEN_GOOD:],
        "learn/defective": defective[:_KNOWN],
        "unseen/defective": defective[-_UNSEEN_DEFECTIVE:],
    }
    stream = [
        *(("good", path) for path in good[_LEARNT + _CALIBRATE : -_UNSEEN_GOOD]),
        *(("defective", path) for path in defective[_KNOWN:-_UNSEEN_DEFECTIVE]),
    ]
    draw.shuffle(stream)
    for name, paths in places.items():
        (folder / name).mkdir(parents=True)
        for path in paths:
            shutil.copyfile(path, folder / name / "-".join(path.parts[-3:]))
    (folder / "stream").mkdir()
    truths = {}
    for number, (truth, path) in enumerate(stream):
        name = f"part-{number:04d}{path.suffix}"
        truths[name] = truth
        shutil.copyfile(path, folder / "stream" / name)
    return truths


def run(*arguments: object) -> str:
    """A command of `agent`; what it prints."""
    done = subprocess.run(
        [*_AGENT, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def run_and_label(folder: Path, truths: dict[str, str], seed: int) -> dict[str, int]:
    """Run the line until all parts have passed, and label on its page."""
    with running(folder) as page:
        while len(ids(page, "queue=&label=&part_id=", None)) == 0:
            time.sleep(0.5)
        cookie = log_in(page)
        seen = 0
        while seen < len(truths):
            time.sleep(1.0)
            answer = ask(page, "GET", "/report/table", cookie)[1]
            rows = answer.decode().splitlines()[1:]
            seen = sum(sum(map(int, row.split(",")[2:8])) for row in rows)
        time.sleep(3.0)  # the last pictures are kept
        counts: Counter[str] = Counter()
        for queue in ("audit", "ng"):
            found = ids(page, f"queue={queue}&label=open", cookie)
            random.Random(seed).shuffle(found)
            for part, name in found[:_LABELS]:
                truth = truths[name]
                form = {"say": f"{part}={truth}", "queue": queue}
                status, _ = ask(page, "POST", "/review/label", cookie, form)
                assert status == 200, status
                counts[f"{queue} {truth}"] += 1
        time.sleep(5.0)
        return dict(counts)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The agent; gives the address of its page."""
    with mosquitto(folder) as port:
        config = folder / "agent.yaml"
        config.write_text(config.read_text().replace("port: 1,", f"port: {port},"))
        command = [*_AGENT, "run", "--config", str(config)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                while True:
                    try:
                        ask(f"127.0.0.1:{_PORT}", "GET", "/line", None)
                        break
                    except OSError:
                        assert process.poll() is None, "the agent has ended"
                        time.sleep(0.5)
                yield f"127.0.0.1:{_PORT}"
            finally:
                process.terminate()


def ask(
    page: str, method: str, path: str, cookie: str | None, form: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """What the page answers; the status and the body."""
    connection = http.client.HTTPConnection(page, timeout=120)
    headers = {"Origin": f"http://{page}", "HX-Request": "true"} if form else {}
    if cookie:
        headers["Cookie"] = f"{COOKIE}={cookie}"
    connection.request(method, path, body=urlencode(form) if form else None, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    if path == "/login":
        body = (answer.headers["set-cookie"] or "").encode()
    connection.close()
    return answer.status, body


def log_in(page: str) -> str:
    """The cookie of a session."""
    _, cookie = ask(page, "POST", "/login", None, {"name": "ada", "password": _PASSWORD})
    return cookie.decode().partition(";")[0].partition("=")[2]


def ids(page: str, query: str, cookie: str | None) -> list[tuple[str, str]]:
    """The parts of a list on the review's screen: their id there, and their part id."""
    found: list[tuple[str, str]] = []
    more = query
    while more is not None:
        html = ask(page, "GET", f"/review?{more}", cookie)[1].decode()
        listed = re.findall(
            r'data-id="([0-9a-f]{12}/\d+)".*?class="id" title="([^"]*)"', html, re.DOTALL
        )
        found += [(part, name) for part, name in listed if (part, name) not in found]
        link = re.search(r'href="/review\?([^"]*before=[^"]*)"', html)
        more = link[1].replace("&amp;", "&") if link and listed else None
    return found


def judged(bundle: Path, unseen: Path) -> dict[str, Any]:
    """What a bundle says of images that nobody has labelled, by its own threshold."""
    opened = open_bundle(bundle)
    record = read_calibration(opened)
    runtime = calibrated_runtime(opened, record)
    threshold = record.calibration.threshold
    with open_inspector(opened, backend=runtime.backend, precision=runtime.precision) as inspector:
        scores = {
            kind: [
                inspector.inspect(read_image(path)).score
                for path in sorted((unseen / kind).iterdir())
            ]
            for kind in ("good", "defective")
        }
    found = sum(score > threshold for score in scores["defective"])
    rejected = sum(score > threshold for score in scores["good"])
    every = np.array(scores["good"] + scores["defective"])
    labels = np.repeat([False, True], [len(scores["good"]), len(scores["defective"])])
    return {
        "found": found,
        "defective": len(scores["defective"]),
        "found_between": rounded(interval(found, len(scores["defective"]), confidence=0.95)),
        "rejected": rejected,
        "good": len(scores["good"]),
        "rejected_between": rounded(interval(rejected, len(scores["good"]), confidence=0.95)),
        "auroc": round(auroc(every, labels), 4),
        "threshold": round(threshold, 4),
        "max_false_reject": record.calibration.max_false_reject,
        "good_parts": record.calibration.good,
        "proved": record.calibration.is_proved,
    }


def rounded(values: Sequence[float]) -> list[float]:
    """To four digits."""
    return [round(value, 4) for value in values]


if __name__ == "__main__":
    main()
