"""Writes requirements.txt: what a device installs, each file with its hash, by pip's own answers.

    python tools/lock.py

pip resolves the product's dependencies for every Python and platform that is supported, under
constraints.txt, and reports the file that it would install and its hash. Nothing is installed.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("cpu", "sign")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
GLIBCS = ("2_17", "2_27", "2_28", "2_31", "2_34", "2_35")
HEAD = """\
# What a device installs, with the hash of each file; made from constraints.txt by `make lock`.
#
#     pip install --require-hashes -r requirements.txt
#     pip install --no-deps --no-build-isolation .
"""


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]
    found: dict[str, set[str]] = {}
    for python in PYTHONS:
        for machine in MACHINES:
            for pin, digest in resolved([*wanted, "setuptools"], python, machine):
                found.setdefault(pin, set()).add(digest)
    lines = [
        " \\\n".join([pin, *(f"    --hash=sha256:{each}" for each in sorted(digests))])
        for pin, digests in sorted(found.items())
    ]
    (ROOT / "requirements.txt").write_text("\n".join([HEAD.rstrip(), *lines]) + "\n")


def resolved(wanted: list[str], python: str, machine: str) -> list[tuple[str, str]]:
    """The pins and hashes that pip would install on such a device."""
    platforms = [f"--platform=manylinux_{each}_{machine}" for each in GLIBCS]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(  # noqa: S603 - our own arguments
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--ignore-installed", "--only-binary=:all:", "--target", folder),
                *("--python-version", python, *platforms, f"--platform=manylinux2014_{machine}"),
                *("--constraint", str(ROOT / "constraints.txt"), "--report", str(report)),
                *wanted,
            ],
            check=True,
        )
        installs = json.loads(report.read_text())["install"]
    return [
        (
            f"{each['metadata']['name'].lower().replace('_', '-')}=={each['metadata']['version']}",
            each["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for each in installs
    ]


if __name__ == "__main__":
    main()
