"""Installs a file of `examples/extending` as a package that adds a kind."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine import registry

ROOT = Path(__file__).parents[1]


@contextmanager
def added(
    example: Path, kinds: registry.Kinds, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """`example` adds a kind, named as its file is, in this process and in its children."""
    package = f"{example.stem}_package"
    info = folder / f"{package}-1.dist-info"
    info.mkdir(parents=True)
    shutil.copy(example, folder / f"{package}.py")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{kinds.group}]\n{example.stem} = {package}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    monkeypatch.setattr(kinds, "_found", {})
    registry._installed.cache_clear()
    try:
        yield
    finally:
        registry._installed.cache_clear()
