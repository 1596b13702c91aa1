"""Losses and gradient norms of 20 float32 steps of every method and form: refactoring must not change them.

``identity.json`` holds the recorded numbers, and the processor and torch version that gave them: there the numbers must
be the same bits. Elsewhere kernels may add in another order, and training multiplies the difference with every step (to
a tenth within ten steps of SGD or LARS): there only the first steps are compared, the first two of them closely.
``python tests/system/test_identity.py`` records them again; do that only after a deliberate change of the numbers.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in conftest.py: the order of sums depends on it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, for support
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project

import pytest
import torch

from support.training import SMALL, lines
from vssl.engine.config import load_config
from vssl.engine.trainer import Trainer

RECORD = Path(__file__).with_name("identity.json")
EVERY_OPERATION = ("augment.flip=0.5", "augment.solarize=[0, 0.2]", "augment.blur=[1, 0.1]")
# A predictor of a small width; the arms of methods that have none, and of the default objective, go without it.
PREDICTOR = ("method.predictor=true", "method.predictor_hidden=16")
PREDICTIVE = (*PREDICTOR, "method.likelihood=predictive", "method.kappa=4")
ARMS = {
    "vssl, cosine, predictive": PREDICTIVE,
    "vssl, cosine, prior": (*PREDICTOR, "method.likelihood=prior", "method.kappa=4"),
    "vssl, gaussian, predictive": (*PREDICTIVE, "method.form=gaussian"),
    "vssl, gaussian, prior": (*PREDICTOR, "method.form=gaussian", "method.likelihood=prior"),
    "vssl, two micro-batches, clipped": (*PREDICTIVE, "train.accumulate=2", "train.clip_grad=1"),
    "vssl, no predictor, bicubic": (*PREDICTIVE, "method.predictor=false", "augment.interpolation=bicubic"),
    "byol, LARS": (*PREDICTOR, "method.name=byol", "optim.name=lars", "optim.lr=1"),
    "moco_v3, SGD": (*PREDICTOR, "method.name=moco_v3", "optim.name=sgd", "optim.lr=0.1"),
    "vssl, default objective": (),
    "vssl, default objective, the own prior in the marginal": ("method.leave_one_out=false", "method.beta=0.5"),
    "vssl, gaussian, implied": ("method.form=gaussian",),
    "vicreg, LARS": ("method.name=vicreg", "optim.name=lars", "optim.lr=0.3"),
    "dino, AdamW": ("method.name=dino", "method.prototypes=64"),
    "vssl, resnet18, four steps": (*PREDICTIVE, "model.backbone=resnet18", "data.limit=64"),
}


def processor() -> str:
    """The facts that decide which kernels are used, as text."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    keys = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    facts = sorted({line for line in lines if line.split(":")[0].strip() in keys})
    return f"torch {torch.__version__}, cpuinfo {hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:16]}"


def train(data: Path, run: Path, overrides: tuple[str, ...]) -> list[list[float]]:
    """[loss, gradient norm] of every step."""
    small = (
        "data.limit=320",
        "data.batch_size=32",
        "data.image_size=16",
        "train.log_every=1",
    )
    keys = [f"data.dir={data}", f"run.dir={run}", *SMALL, *small, *EVERY_OPERATION, *overrides]
    Trainer(load_config("configs/demo.yaml", keys)).fit()
    return [[line["loss"], line["grad_norm"]] for line in lines(run)]


@pytest.mark.parametrize("arm", ARMS)
def test_twenty_steps_are_as_recorded(arm: str, digits: Path, tmp_path: Path) -> None:
    record = json.loads(RECORD.read_text())
    steps = train(digits, tmp_path / "run", ARMS[arm])
    if record["processor"] == processor():
        assert steps == record["steps"][arm]
    else:
        close = torch.tensor(steps), torch.tensor(record["steps"][arm])
        torch.testing.assert_close(*(part[:2] for part in close), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(*(part[:4] for part in close), rtol=0.1, atol=1e-3)


def main() -> None:
    from pipelines.convert import convert

    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder) / "digits"
        convert("digits", None, digits, format="resident", workers=1)
        steps = {arm: train(digits, Path(folder) / f"run-{n}", keys) for n, (arm, keys) in enumerate(ARMS.items())}
    rows = ",\n".join(f"{json.dumps(arm)}: {json.dumps(values)}" for arm, values in steps.items())
    RECORD.write_text(f'{{"processor": {json.dumps(processor())}, "steps": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
