"""Every measurement that needs a GPU, as a list of steps. A step runs commands and writes their figures to one file."""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.files import write_json
from pipelines.formats.packed import open_packed
from tools.bench.noise import pack_noise_if_absent
from vssl.commands.arguments import installed
from vssl.engine.environment import describe_environment
from vssl.methods import COMPARED
from vssl.runtime.device import resolve_device

__all__ = ["SMOKE", "LeftOut", "Step", "StepFailed", "build_steps", "measure", "prepare", "run_step"]

LIMIT = 540.0  # seconds that the longest step may take
TRAINING = 360.0  # seconds for the epochs of a training; the rest is for starting, compiling and evaluating
MOST_EPOCHS = 200
_EAGER = "torch.compile failed"  # start of the warning that the step runs eager, with poor figures
_GRACE = 30  # seconds to end in after SIGTERM
NOISE = {32: 50_000, 400: 2048}  # images of random pixels, by side: as many as CIFAR-10 has, and 1 GB
SMOKE = Path("runs/gpu-smoke")


class StepFailed(Exception):
    """A step produced no figures; the message is the reason."""


class LeftOut(Exception):
    """A step was not started; the message is the reason."""


@dataclass(frozen=True)
class Step:
    """Commands, each an argument list for Python; ``{json}`` stands for a file that becomes part of the result."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    seconds: float = LIMIT  # that it may take
    data: Path | None = None  # packed data set that must exist
    module: str = ""  # module that must be installed
    run: Path | None = None  # run directory whose metrics become part of the result
    after: Path | None = None  # result of another step that must exist


def measure(name: str, smoke: bool, results: Path, seconds: float = math.inf) -> str:
    """Run the step of that name, unless its result exists.

    Args:
        seconds: the time left; a step that may take longer is not started.

    Returns:
        One line: what was done.

    Raises:
        LeftOut: something that it needs is missing, or too little time is left.
        StepFailed: a command failed or took too long.
    """
    # Built for each step again, because the trainings' epochs depend on what earlier steps measured.
    step = next(step for step in build_steps(smoke, results) if step.name == name)
    file = results / f"{name}.json"
    if file.exists():
        return f"already done, see {file}"
    if reason := _missing(step):
        raise LeftOut(reason)
    if step.seconds > seconds:
        raise LeftOut(f"it may take {step.seconds:.0f} s and {max(0.0, seconds):.0f} s are left: start again")
    result = run_step(step)
    write_json(file, result)
    eager = any(line.startswith(_EAGER) for command in result["commands"] for line in command["output"])
    return f"done{f', but {_EAGER}' if eager else ''}, see {file}"


def build_steps(smoke: bool, results: Path) -> list[Step]:
    """All steps, the most valuable first. The trainings' epochs follow from the measured images per second."""
    pace = results / "throughput-32.json"
    places = {"C10": "data/cifar10-resident", "IN100": "data/in100-ffcv", "IN100_DALI": "data/in100-dali"}
    c10, in100, dali = (Path(os.environ.get(key, place)) for key, place in places.items())
    measure: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    if smoke:
        c10, in100, dali = (SMOKE / name for name in ("resident", "ffcv", "dali"))
        measure = ("--repeats", "2", "--seconds", "0.05")
        tiny = ("data.batch_size=32", "data.image_size=16", "data.limit=128", "train.compile=false", "train.device=cpu")
        tiny += ("model.backbone=resnet8", "method.projector_hidden=32", "method.latent=16")
        plain = ("model.backbone=resnet18", "data.batch_size=4")  # torchvision has no resnet8
    small, large = (_noise_folder(smoke, side) for side in NOISE)
    trace = ("--trace", str((SMOKE if smoke else Path("runs/gpu")) / "throughput-32.trace"))

    def arguments(config: str, data: Path) -> tuple[str, ...]:
        return "-c", f"configs/{config}.yaml", f"data.dir={data}", *tiny

    def throughput(name: str, config: str, data: Path, *more: str, module: str = "") -> Step:
        command = ("tools/throughput.py", *arguments(config, data), *more, *measure, "--json", "{json}")
        return Step(name, (command,), 300.0, data, module)

    def step(name: str, config: str, data: Path) -> Step:
        command = ("tools/compare_step.py", *arguments(config, data), *plain, *measure, "--json", "{json}")
        return Step(name, (command,), 420.0, data)

    def training(method: str) -> Step:
        run = (SMOKE if smoke else Path("runs/gpu")) / method
        epochs = _epochs(pace, c10) if not smoke and pace.exists() and c10.is_dir() else 1
        keys = (f"method.name={method}", f"train.epochs={epochs}", f"eval.every={max(1, epochs // 4)}")
        train = ("train.py", *arguments("cifar10_fast", c10), *keys, f"run.dir={run}", "--resume", "auto")
        evaluate = (("tools/evaluate.py", str(run), "--protocol", p, "--json", "{json}") for p in ("knn", "linear"))
        return Step(f"train-{method}", (train, *evaluate), data=c10, run=run, after=pace)

    return [
        Step("tests", (("-m", "pytest", "-q", "-m", "gpu"),), 300.0),
        throughput("throughput-32", "cifar10_fast", small, *trace),
        throughput("throughput-224", "in100_fast", large),
        step("step-32", "cifar10_fast", small),
        step("step-224", "in100_fast", large),
        throughput("loading-ffcv", "in100_fast", in100, module="ffcv"),
        *(training(method) for method in COMPARED),
        throughput("throughput-32-again", "cifar10_fast", small),
        throughput("throughput-32-exchange", "cifar10_fast", small, "--exchange"),
        throughput("loading-dali", "in100_fast", dali, module="nvidia.dali"),
        throughput("loading-dali-crops", "in100_fast", dali, "data.crops=loader", module="nvidia.dali"),
    ]


def prepare(smoke: bool) -> None:
    """Pack the data sets of the steps: random pixels and, for ``smoke``, the digits as pixels and as JPEGs."""
    if smoke:
        shutil.rmtree(SMOKE, ignore_errors=True)
        options = {"resident": (), "ffcv": ("--quality", "90"), "dali": ("--quality", "90")}
        for format, more in options.items():
            out = SMOKE / format
            words = ("tools/convert.py", "--dataset", "digits", "--format", format, "--out", str(out), "--workers", "1")
            module = {"dali": "nvidia.dali", "ffcv": "ffcv"}.get(format)
            if module is None or installed(module):
                _run([*words, *more], LIMIT)
    for side, count in NOISE.items():
        pack_noise_if_absent(_noise_folder(smoke, side), 128 if smoke else count, side)
    Path("runs/gpu").mkdir(parents=True, exist_ok=True)  # for the trace


def _noise_folder(smoke: bool, side: int) -> Path:
    return SMOKE / f"noise-{side}" if smoke else Path(f"data/noise-{side}-resident")


def _epochs(pace: Path, data: Path) -> int:
    """The epochs that fit into TRAINING at the measured images per second, the same for every method."""
    rate = json.loads(pace.read_text())["figures"][0]["stages"]["end_to_end"]["images_per_second"]
    return max(1, min(MOST_EPOCHS, int(TRAINING * rate / open_packed(data).splits["train"].count)))


def run_step(step: Step) -> dict:
    """Run a step's commands; returns the hardware, the versions, the commands and their figures.

    Raises:
        StepFailed: a command failed or took too long.
    """
    started, figures, commands = time.monotonic(), [], []
    environment = describe_environment(resolve_device("auto"), world_size=1)
    with tempfile.TemporaryDirectory() as folder:
        for number, command in enumerate(step.commands):
            file = Path(folder) / f"{number}.json"
            words = [word.replace("{json}", str(file)) for word in command]
            before = time.monotonic()
            output = _run(words, step.seconds - (before - started))
            seconds = round(time.monotonic() - before, 1)
            commands.append({"command": shlex.join(("python", *command)), "seconds": seconds, "output": output})
            if file.exists():
                figures.append(json.loads(file.read_text()))
    if step.run is not None:
        lines = [json.loads(line) for line in (step.run / "metrics.jsonl").read_text().splitlines()]
        logged = [line for line in lines if "images_per_second" in line]
        figures.append([line for line in lines if "knn_top1" in line] + logged[-1:])
    return {
        "step": step.name,
        "commands": commands,
        "environment": environment,
        "figures": figures,
    }


def _run(words: list[str], seconds: float) -> list[str]:
    """Run Python and show its output; return its last lines, after all warnings that it runs eager."""
    print("python", shlex.join(words), flush=True)
    # A group of its own: the processes that a command starts must end with it, or they would disturb the next.
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )
    stops = [signal.SIGKILL, signal.SIGTERM]  # a training saves a checkpoint at SIGTERM, and can continue

    def stop(*_: object) -> None:
        os.killpg(process.pid, stops.pop())
        signal.alarm(_GRACE if stops else 0)

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(max(1, round(seconds)))
    assert process.stdout is not None  # because of stdout=PIPE
    lines = []
    try:
        for line in process.stdout:
            print(" ", line, end="", flush=True)
            lines.append(line.rstrip())
        code = process.wait()
    finally:
        signal.alarm(0)
        if process.poll() is None:  # this program is interrupted
            stop()
            process.wait()
            signal.alarm(0)
    if len(stops) < 2:
        raise StepFailed(f"took longer than {seconds:.0f} s")
    if code:
        raise StepFailed(f"exit code {code}")
    return [line for line in lines[:-20] if line.startswith(_EAGER)] + lines[-20:]


def _missing(step: Step) -> str | None:
    """Why a step cannot run here; None if it can."""
    if step.module and not installed(step.module):
        return f"{step.module} is not installed"
    if step.data is not None and not step.data.is_dir():
        return f"no packed data set at {step.data}"
    if step.after is not None and not step.after.exists():
        return f"run {step.after.stem} first"
    return None
