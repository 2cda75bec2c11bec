"""A coverage-guided fuzzer on one parser, with libFuzzer's options:

    python -m tests.faults.fuzz command CORPUS_FOLDER -max_total_time=600

`CORPUS_FOLDER` gets the seeds and all that reached something new. An input that crashes, hangs or
takes too much memory is written beside it, and the exit code is not 0.
"""

import sys
from pathlib import Path

import atheris

GUIDED_BY = {
    "frame": [
        "engine.image",
        *(f"PIL.{form}ImagePlugin" for form in ("Bmp", "Jpeg", "Png", "Ppm", "Tiff", "WebP")),
    ],
    "configuration": ["agent.settings", "yaml"],
    "command": ["agent.requests", "agent.sinks.mqtt.requests", "agent.station.threshold"],
    "manifest": ["engine.bundle", "engine.spec", "engine.view"],
}
"""Modules whose branches count. What is not written in Python, as libjpeg, is not instrumented."""

with atheris.instrument_imports(include=GUIDED_BY[sys.argv[1]]):
    from tests.faults.parsers import PARSERS


def main() -> None:
    name, corpus, *options = sys.argv[1:]
    parser = PARSERS[name]
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(parser.seeds):
        (folder / f"seed-{number}").write_bytes(seed)

    def feed(data: bytes) -> None:
        parser.accepts(data)

    atheris.Setup([sys.argv[0], str(folder), *options], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
