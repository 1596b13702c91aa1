"""Work in several processes, started by torchrun or as torchrun starts them."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from pipelines.errors import run_command
from vssl.runtime.processes import join_world


def _process(rank, size, port, work, results, outputs):
    """One of ``size`` processes, with the environment that torchrun gives it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = sys.stderr = open(outputs / f"output-{rank}", "w", buffering=1)  # noqa: SIM115 (the process ends)

    def main():
        with join_world() as world:
            results.put((rank, work(world)))

    try:
        run_command(main)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def torchrun(size, *arguments):
    """``train.py`` in ``size`` processes, which torchrun starts once more if one of them dies. stdout also carries
    stderr."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    return subprocess.Popen(
        [*command, "--max-restarts=1", str(Path(__file__).resolve().parents[2] / "train.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_rank(process, rank):
    """SIGKILL to the process of this rank of ``torchrun``."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            os.kill(int(child), signal.SIGKILL)
            return
    raise LookupError(f"torchrun has no child of rank {rank}")


def written(run_dir):
    """What has been written to metrics.jsonl; its last line may be incomplete."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def wait_for_step(process, run_dir, step):
    """Return when ``process``, of ``torchrun``, has logged the loss of ``step`` in its run's directory."""
    deadline = time.monotonic() + 600
    while not any(line.get("step", 0) >= step and "loss" in line for line in written(run_dir)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()  # torchrun ends its processes too
            raise AssertionError(process.communicate()[0])
        time.sleep(0.01)


@pytest.fixture
def processes(tmp_path):
    """``processes(size, work, seconds=300, codes=None)``: ``work(world)`` in each of ``size`` forked processes. Returns
    the results by rank, after all have ended with these exit codes. ``processes.output(rank)``: what one printed."""
    context = multiprocessing.get_context("fork")

    def run(size, work, seconds=300, codes=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results = context.SimpleQueue()
        started = [
            context.Process(target=_process, args=(rank, size, port, work, results, tmp_path)) for rank in range(size)
        ]
        for process in started:
            process.start()
        try:
            for process in started:
                process.join(seconds)  # far below the half hour of a collective's own timeout
            got = [process.exitcode for process in started]
            assert got == (codes or [0] * size), [run.output(rank) for rank in range(size)]
        finally:
            for process in started:
                process.kill()
        answers = {}
        while not results.empty():
            rank, answer = results.get()
            answers[rank] = answer
        return [answers.get(rank) for rank in range(size)]

    run.output = lambda rank: (tmp_path / f"output-{rank}").read_text()
    return run
