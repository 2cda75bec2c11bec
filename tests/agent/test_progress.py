"""Long commands say what they do, on a terminal and in a pipe."""

import io
import threading

import pytest

from agent.commands.options import require_writable
from agent.commands.progress import Progress, duration
from engine.errors import ConfigurationError


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Told:
    """A progress whose time passes when it is told to."""

    def __init__(self, output):
        self.output, self.time = output, 0.0
        self.progress = Progress(output, now=lambda: self.time)

    def after(self, seconds):
        self.time += seconds
        self.progress.tick()
        return self.output.getvalue().splitlines()[-1]


def test_in_a_pipe_there_is_a_line_for_each_stage_and_one_every_30_s():
    told = Told(io.StringIO())
    told.progress.stage("reading")
    assert told.after(29) == "reading"
    assert told.after(1) == "reading: for 30 s"
    told.progress.stage("training", 8, "epochs")
    assert told.after(10) == "training: 8 epochs"
    assert told.after(20) == "training: 0 of 8 epochs in 30 s"
    told.progress.step(2)
    told.progress.say("epoch 2/8: loss 0.5")
    assert told.after(29) == "epoch 2/8: loss 0.5"
    assert told.after(61) == "training: 2 of 8 epochs in 2 min, about 6 min left"
    assert "\r" not in told.output.getvalue()


def test_on_a_terminal_one_line_changes():
    told = Told(Terminal())
    told.progress.stage("scoring good parts", 4, "parts")
    assert list(told.progress.over("ab")) == ["a", "b"]
    shown = told.after(2)
    assert shown.endswith("scoring good parts: 2 of 4 parts in 2 s, about 2 s left")
    told.progress.say("a line")
    assert told.output.getvalue().endswith("\r\x1b[Ka line\n")


def test_its_thread_ends():
    def its_own():
        return [thread for thread in threading.enumerate() if thread.name == "atac-progress"]

    before = its_own()
    with Progress(io.StringIO()) as progress:
        progress.stage("working")
        assert len(its_own()) == len(before) + 1
    assert its_own() == before


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (150, "2 min"), (5400, "1.5 h")])
def test_durations_are_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_what_could_not_be_kept_is_refused_before_the_work(tmp_path, monkeypatch):
    require_writable("--bundle", tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ConfigurationError, match=r"--bundle: .* may not be written by this user"):
        require_writable("--bundle", tmp_path)
