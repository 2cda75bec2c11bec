"""Processes that train side by side on one device."""

import argparse
import multiprocessing
import queue
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.two_stage.dcgan import DcganJob, run_dcgan
from benchmarks.two_stage.jobs import run_job, warm_up
from benchmarks.two_stage.plan import ADGAN_OPTIONS, with_settings
from benchmarks.two_stage.views import Views, read_views, write_views
from engine.view import ViewSpec
from train.weights import read_weights

_CONTEXT = multiprocessing.get_context("spawn")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_views(
    sets: tuple[str, ...], data: Path, spec: ViewSpec, folder: Path, *, images: int | None
) -> None:
    """The views of all sets, a process each."""
    write = partial(write_views, data=data, spec=spec, folder=folder, images=images)
    with ProcessPoolExecutor(len(sets), mp_context=_CONTEXT) as pool:
        list(pool.map(write, sets))


class Pool:
    """Processes that each take the next task, so that the longest wait is one task."""

    def __init__(self, options: argparse.Namespace, folder: Path, images: int | None) -> None:
        self._tasks = _CONTEXT.Queue()
        self._answers = _CONTEXT.Queue()
        self._waiting = 0
        arguments = self._tasks, self._answers, options, folder, images
        self._workers = [
            _CONTEXT.Process(target=_work, args=arguments, daemon=True)
            for _ in range(options.workers)
        ]
        for worker in self._workers:
            worker.start()

    def put(self, kind: str, job: Any) -> None:
        self._tasks.put((kind, job))
        self._waiting += 1

    def wait(self, seconds: float, on_answer: Callable[[Any], object]) -> None:
        """Until all tasks have been answered, or the time is over."""
        end = time.monotonic() + seconds
        while self._waiting and time.monotonic() < end:
            if not any(worker.is_alive() for worker in self._workers):
                say("no worker is left")
                return
            try:
                answer = self._answers.get(timeout=max(0.05, min(1.0, end - time.monotonic())))
            except queue.Empty:
                continue
            self._waiting -= 1
            if isinstance(answer, str):
                say(answer)
            else:
                on_answer(answer)

    def drop(self) -> None:
        """Take back what no worker has begun."""
        while True:
            try:
                self._tasks.get(timeout=0.2)
            except queue.Empty:
                return
            self._waiting -= 1

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()


def _work(
    tasks: Any, answers: Any, options: argparse.Namespace, folder: Path, images: int | None
) -> None:

    weights = read_weights(options.weights, option="--weights")
    views: dict[str, Views] = {}
    warm_up(options.workers)
    while True:
        kind, job = tasks.get()
        began = time.monotonic()
        try:
            if job.set not in views:
                views[job.set] = read_views(job.set, folder, images=images)
            answers.put(_done(kind, job, views[job.set], weights, options))
            say(f"{job.key}: {time.monotonic() - began:.1f} s")
        except Exception:  # noqa: BLE001 - the others go on
            answers.put(f"{job.key}: {traceback.format_exc()}")


def _done(kind: str, job: Any, views: Views, weights: Any, options: argparse.Namespace) -> Any:

    if isinstance(job, DcganJob):
        return run_dcgan(job, views, steps=2 if options.dry else 400)
    if kind == "table":
        pictures = options.out if job.draw == 0 else None
        return run_job(job, views, weights, pictures=pictures)[0]
    result, training = run_job(job, views, weights)
    found = [result]
    if job.variant == "base":
        for name, changes in ADGAN_OPTIONS.items():
            settings = with_settings(job.settings, changes)
            other = replace(job, variant=name, settings=settings)
            found.append(run_job(other, views, weights, after=training)[0])
    return found
