"""What a process waits for is said after a time."""

import threading

import pytest

from vssl.engine.hang_watch import HangWatch


def test_what_takes_long_is_named():
    said, lines = threading.Event(), []

    def say(line):
        lines.append(line)
        said.set()

    with HangWatch("process 1 of 2", after=0.05, say=say) as watch:
        watch.note("waiting for the loader's batch 3 of epoch 1 (step 3)")
        assert said.wait(60)
    assert lines[0].startswith("process 1 of 2 has been waiting for the loader's batch 3 of epoch 1 (step 3) for 0 s")


def test_its_thread_ends_with_the_context():
    with pytest.raises(ValueError), HangWatch("process 0 of 1", after=1000.0):
        raise ValueError
    assert not any(thread.name == "hang-watch" for thread in threading.enumerate())
