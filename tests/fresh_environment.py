"""A virtual environment into which our wheel is installed, as on a device; takes no network."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SOURCES = ("agent", "calibration", "engine", "train", "pyproject.toml", "README.md", "LICENSE")


class FreshEnvironment:
    """`bin` has the commands; dependencies come from the environment that runs the tests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = folder / "venv"
        self.bin = self._environment / "bin"

    def make(self) -> None:
        source = self._folder / "source"
        source.mkdir()
        for name in _SOURCES:
            path = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__")
            if path.is_dir():
                shutil.copytree(path, source / name, ignore=ignore)
            else:
                shutil.copy(path, source)
        _ran(sys.executable, "-m", "venv", "--without-pip", self._environment)
        own = next(self._environment.glob("lib/python*/site-packages"))
        dependencies = sysconfig.get_path("purelib")
        (own / "dependencies.pth").write_text(f"{dependencies}\n")
        self.install(source)

    def install(self, source: Path) -> None:
        """Build the project's wheel and install it, without its dependencies."""
        wheels = self._folder / "wheels" / source.name
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
        offline = ("--no-index", "--no-deps")
        _ran(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, source)
        (wheel,) = wheels.glob("*.whl")
        python = ("--python", self.bin / "python")
        _ran(*pip, *python, "install", *offline, "--force-reinstall", wheel)

    def ran(self, *command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        """A command of this environment, run in its folder, with its output."""
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=options.get("cwd", self._folder),
            env={"PATH": "/usr/bin:/bin", "HOME": str(self._folder), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


def _ran(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
