"""One model for each line, trained on a Ray cluster, or here one after another.

    sets/line-1/good …    ─▶ task: `agent train` on some node ─▶ out/line-1, a bundle
    sets/line-2/labels.jsonl, frames …

A set and a bundle travel as files in memory. A task whose worker dies is begun again elsewhere; one
whose training fails is told, and costs the others nothing. Nobody signs here: an engineer does.
Only this module imports Ray, when it is used.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from agent.child_start import COMMAND
from agent.labelled import RECORDS, gather, read_labelled
from agent.record.rows import software
from engine.bundle import MANIFEST, Bundle, open_bundle
from engine.errors import AtacError, BundleError, ConfigurationError, TrainingError
from engine.extras import install

_IN_FLIGHT: Final = 2
"""Sets that wait in the cluster's memory, for each task that it can run at once."""
_SAID: Final = 300
_WORKPLACE: Final = "atac-train-"

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of one line: its bundle, or why there is none."""

    line: str
    bundle: Bundle | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Ray cluster: its address, `local` for one on this machine, and what a task needs of it."""

    address: str
    gpus: float = 0.0
    cpus: float = 1.0
    retries: int = 3


def sets_in(folder: Path) -> dict[str, Path]:
    """The labelled sets below a folder, by the name of their line."""
    try:
        found = {each.name: each for each in sorted(folder.iterdir()) if each.is_dir()}
    except OSError as error:
        raise ConfigurationError(
            "data", str(folder), f"cannot be read ({error.strerror})"
        ) from None
    if not found:
        remedy = "has no folders; put each line's images into one of its name"
        raise ConfigurationError("data", str(folder), remedy)
    return found


def train_here(
    sets: Mapping[str, Path], out: Path, arguments: Sequence[str], *, command: str = COMMAND
) -> Iterator[Trained]:
    """Train one line after another, in a process each.

    Args:
        sets: A labelled set for each line.
        out: Gets a bundle for each line.
        arguments: For `agent train`, beside the images and the bundle.
        command: What Python runs as `agent`.
    """
    for line, folder in sets.items():
        try:
            files = trained(_packed(folder), arguments, command, software())
            yield _kept(line, files, out)
        except AtacError as error:
            yield Trained(line=line, failure=str(error))


def train_on(
    cluster: Cluster,
    sets: Mapping[str, Path],
    out: Path,
    arguments: Sequence[str],
    *,
    command: str = COMMAND,
) -> Iterator[Trained]:
    """Train on a Ray cluster, a task for each line; as `train_here`, in the order of their ends.

    Args:
        cluster: Where, and what a task needs.
        sets: As for `train_here`.
        out: As for `train_here`.
        arguments: As for `train_here`.
        command: As for `train_here`.

    Raises `ConfigurationError` where the cluster cannot be used.
    """
    waiting = dict(sets)
    with _connected(cluster) as ray:
        task = ray.remote(
            num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=cluster.retries
        )(trained)
        most = _IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1) / cluster.cpus))
        running: dict[Any, str] = {}
        while waiting or running:
            while waiting and len(running) < most:
                line = next(iter(waiting))
                try:
                    files = _packed(waiting.pop(line))
                except AtacError as error:
                    yield Trained(line=line, failure=str(error))
                else:
                    running[task.remote(files, list(arguments), command, software())] = line
            if running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                line = running.pop(done)
                try:
                    yield _kept(line, ray.get(done), out)
                except (AtacError, ray.exceptions.RayError) as error:
                    yield Trained(line=line, failure=_in_words(error))


def trained(
    files: Files, arguments: Sequence[str], command: str, expected: str
) -> dict[str, bytes]:
    """The bundle that `agent train` makes of a set, wherever this runs.

    Args:
        files: The set, by names relative to its folder.
        arguments: For `agent train`.
        command: What Python runs as `agent`.
        expected: The software that has sent the set.

    Raises:
        TrainingError: The training has failed, or this is another version.
    """
    if software() != expected:
        raise TrainingError(f"this node has {software()}, and not {expected}; install the same")
    with _workplace() as place:
        folder, bundle = place / "set", place / "bundle"
        _unpacked(files, folder)
        data = ["--data", str(folder)]
        if (folder / RECORDS).is_file():
            gathered = place / "data"
            try:
                counts = gather(read_labelled(folder), None, gathered)
            except ConfigurationError as error:
                raise TrainingError(str(error)) from None
            data = ["--good", str(gathered / "good")]
            if counts["defective"]:
                data += ["--defective", str(gathered / "defective")]
                data += ["--defects", str(counts["defective"])]
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-P", "-c", command, "train", *data, "--out", str(bundle), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it was ended"]
            raise TrainingError(said[-1].removeprefix("agent: ")[:_SAID])
        return {file.name: file.read_bytes() for file in bundle.iterdir() if file.is_file()}


@contextmanager
def _workplace() -> Iterator[Path]:
    """A folder of our own; those whose owners were killed on this machine are removed."""
    with tempfile.TemporaryDirectory(prefix=_WORKPLACE) as name:
        # Under its name it is locked already: others take what is not for left behind.
        mark = Path(name, "owner.new")
        with mark.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            mark.rename(mark.with_suffix(""))
            for other in Path(name).parent.glob(f"{_WORKPLACE}*/owner"):
                with suppress(OSError), other.open() as left:
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(other.parent, ignore_errors=True)
            yield Path(name)


def _packed(folder: Path) -> dict[str, bytes]:
    try:
        return {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not file.is_symlink()
        }
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be read ({error.strerror})") from None


def _unpacked(files: Files, folder: Path) -> None:
    for name, data in files.items():
        parts = PurePosixPath(name).parts
        if not parts or {"..", "/"} & {*parts}:
            raise TrainingError(f"{name!r} is no name of a file in a set")
        place = folder.joinpath(*parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def _kept(line: str, files: Files, out: Path) -> Trained:
    """Write a bundle that has come back; it is what its manifest says, or refused."""
    place, unfinished = out / line, out / f"{line}.partial"
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        flat = {name: data for name, data in files.items() if PurePosixPath(name).name == name}
        _unpacked(flat, unfinished)
        open_bundle(unfinished)
        unfinished.rename(place)
    except OSError as error:
        raise BundleError(str(place), f"cannot be written ({error.strerror})") from None
    return Trained(line=line, bundle=open_bundle(place))


def missing_in(out: Path, sets: Mapping[str, Path]) -> dict[str, Path]:
    """The sets whose lines have no bundle in `out` yet: a command that was ended goes on."""
    return {line: folder for line, folder in sets.items() if not (out / line / MANIFEST).is_file()}


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    try:
        import ray  # noqa: PLC0415 - large, and for those who have a cluster
    except ImportError:
        remedy = f"needs the package ray; {install('fleet')}"
        raise ConfigurationError("--ray", cluster.address, remedy) from None
    try:
        ray.init(
            address=cluster.address,
            include_dashboard=False if cluster.address == "local" else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        said = f"cannot be used: {_in_words(error)}"
        if "connect to" in said:  # Ray keeps to itself whether it was turned away
            said += "; is it up, and is RAY_AUTH_MODE here as on its nodes?"
        raise ConfigurationError("--ray", cluster.address, said) from None
    try:
        yield ray
    finally:
        with suppress(RuntimeError):
            ray.shutdown()


def _in_words(error: Exception) -> str:
    """An error of Ray in one line: its first paragraphs are traces of other processes."""
    cause = getattr(error, "cause", None)
    said = str(cause if isinstance(cause, AtacError) else error)
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines)[:_SAID]
