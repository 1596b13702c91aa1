"""What a new part of each kind costs: the worked examples of docs/architecture.md, put into a copy of the project."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.formats import FORMATS, find_format
from pipelines.formats.protocol import Format

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs/architecture.md").read_text()

READ_PLATES = """
import torch
from pipelines.config import AugmentConfig, DataConfig
from pipelines.formats.packed import open_packed
from pipelines.loading.build import build_loader

packed = open_packed("data/plates-plain", verify=True)
arguments = {"train": False, "seed": 0, "device": torch.device("cpu")}
for name in ("auto", "plain", "torch"):
    data = DataConfig(loader=name, batch_size=4, workers=1)
    loader = build_loader(data, AugmentConfig(), packed, "train", **arguments)
    (batch,) = loader
    loader.close()
    levels = batch.pixels.amax((1, 2, 3, 4))
    print(type(loader).__name__, batch.labels.tolist(), list(batch.pixels.shape), levels.tolist())
"""

COMPARE_DRAWS = """
import dataclasses, torch
from pipelines.augment.views import Augment
from pipelines.config import AugmentConfig

size = torch.full((64, 2), 32, dtype=torch.int32)
without = AugmentConfig(blur=(0.5, 0.5))
plain, more = (
    Augment(config, 32).sample_params(3, 1, torch.arange(64), size)
    for config in (without, dataclasses.replace(without, posterize=(0.5, 0.5)))
)
flat = lambda value: value if isinstance(value, tuple) else (value,)
same = all(torch.equal(a, b) for name in plain for a, b in zip(flat(plain[name]), flat(more[name])))
print(sorted(set(more) - set(plain)), same, 0 < more["posterize"].float().mean().item() < 1)

from pipelines.errors import UserError
from vssl.engine.config import load_config
try:
    load_config("configs/demo.yaml", ["method.name=byol", "method.bottleneck=64"])
except UserError as error:
    print(error)
"""

STEP_LION = """
import torch
from torch import nn
from pipelines.errors import UserError
from vssl.engine.config import load_config, resolve
from vssl.optim import build_optimizer, set_learning_rate

optim = resolve(load_config("configs/demo.yaml", ["optim.name=lion", "optim.blend=0.5", "optim.weight_decay=0"])).optim
weight = nn.Linear(2, 1, bias=False)
nn.init.zeros_(weight.weight)
optimizer = build_optimizer(weight, optim)
set_learning_rate(optimizer, optim.lr)
for gradient, bad in ((1.0, 0.0), (float("nan"), 1.0), (-1.0, 0.0)):
    weight.weight.grad = torch.tensor([[gradient, 0.0]])
    optimizer.found_inf = torch.tensor(bad)
    optimizer.step()
    print([round(w, 6) for w in weight.weight.flatten().tolist()])
try:
    load_config("configs/demo.yaml", ["optim.memory=0.5"])
except UserError as error:
    print(error)
"""


def apply_examples(project: Path) -> dict[str, int]:
    """Make the files and the changes that the page shows; how many lines each changed file gained."""
    gained = {}
    for path, content in re.findall(r"```python\n# (\S+)\n(.*?)```", DOCS, re.DOTALL):
        assert not (project / path).exists()
        (project / path).write_text(content)
    for diff in re.findall(r"```diff\n(.*?)```", DOCS, re.DOTALL):
        for part in diff.split("--- ")[1:]:
            name, *lines = part.splitlines()
            path = project / name
            before = text = path.read_text()
            for line, following in zip(lines, [*lines[1:], ""], strict=True):
                if line[0] in " -" and following[:1] == "+":
                    kept = [line[1:]] if line[0] == " " else []
                    assert text.count(f"{line[1:]}\n") == 1, line
                    text = text.replace(f"{line[1:]}\n", "\n".join([*kept, following[1:]]) + "\n")
            path.write_text(text)
            gained[name] = len(set(text.splitlines()) - set(before.splitlines()))
    return gained


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with all the examples in it."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("pipelines", "vssl", "tools", "configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", copy)
    gained = apply_examples(copy)
    registries = {name: lines for name, lines in gained.items() if name.endswith("__init__.py")}
    assert len(registries) == 7 and set(registries.values()) == {1}
    assert gained["pipelines/config.py"] == 1 and gained["pipelines/augment/views.py"] == 2  # an import and the list
    return copy


def run(project, *arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=project, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_format_and_a_source_are_packed_verified_and_read_also_by_a_program(project):
    convert = ("tools/convert.py", "--dataset", "plates", "--format", "plain", "--workers", "1")
    out = run(project, *convert)
    assert "data/plates-plain: plates as plain, 2 classes" in out and "train: 4 images up to 6 x 5" in out
    assert "every checksum agrees" in run(project, *convert, "--verify")
    batch = "TorchLoader [0, 0, 1, 1] [4, 1, 5, 6, 3] [10, 20, 200, 210]\n"
    assert run(project, "-c", READ_PLATES) == 3 * batch
    assert run(project, "-m", "vssl", "classes", "data/plates-plain") == "dark: 2\nlight: 2\n"
    assert "  classes     Count the training images of each class.\n" in run(project, "-m", "vssl", "--help")


def test_an_augmentation_moves_no_other_draw_and_a_methods_keys_are_its_own(project):
    draws, refused = run(project, "-c", COMPARE_DRAWS).splitlines()
    assert draws == "['posterize'] True True"
    assert refused == "method.bottleneck is an option of method.name=simsiam, not of byol"


def test_a_method_trains_and_a_protocol_judges_it(project, digits):
    keys = ("method.name=simsiam", "method.projector_hidden=32", "method.latent=16", "method.bottleneck=8")
    small = ("train.epochs=1", "train.compile=false", "train.device=cpu", "data.limit=256", "data.batch_size=64")
    out = run(
        project,
        "train.py",
        "-c",
        "configs/demo.yaml",
        *keys,
        *small,
        "augment.posterize=[0.5, 0]",
        f"data.dir={digits}",
        "train.loggers=[rows]",
    )
    assert "kNN top-1 trained" in out and "backbone.safetensors" in out
    assert "0,knn_top1,0." in (project / "runs/demo/metrics.csv").read_text()
    out = run(
        project, "tools/evaluate.py", "runs/demo", "--protocol", "centroid", "protocol.shots=5", "--device", "cpu"
    )
    assert out.startswith("centroid top-1: 0.")


def test_an_optimizer_steps_and_its_keys_are_its_own(project, digits):
    first, bad, second, refused = run(project, "-c", STEP_LION).splitlines()
    assert (first, bad, second) == ("[-0.0002, 0.0]", "[-0.0002, 0.0]", "[0.0, 0.0]")
    assert refused == "optim.memory is an option of optim.name=lion, not of adamw"
    small = ("train.epochs=1", "train.compile=false", "data.limit=256", "data.batch_size=64", "eval.every=0")
    keys = ("optim.name=lion", "optim.layer_decay=0.5", "optim.final_weight_decay=0.1", "run.dir=runs/lion", *small)
    run(project, "train.py", "-c", "configs/demo.yaml", *keys, "train.device=cpu", f"data.dir={digits}")
    assert (project / "runs/lion/backbone.safetensors").exists()


def test_own_parts_stay_outside_the_package(project, digits, tmp_path):
    shutil.move(project / "mine.py", tmp_path)
    (command,) = re.findall(r"^python train\.py (.*mine:network.*)$", DOCS, re.MULTILINE)
    small = ("train.epochs=1", "train.compile=false", "train.device=cpu", "data.limit=256", "data.batch_size=64")
    shutil.copytree(project / "configs", tmp_path / "configs")
    out = run(tmp_path, project / "train.py", *shlex.split(command), *small, f"data.dir={digits}")
    assert "4 STEPS!" in out and "STEP 4!" in out and "kNN top-1 trained" in out
    out = run(tmp_path, project / "tools/evaluate.py", "runs/demo", "--protocol", "knn", "--device", "cpu")
    assert out.startswith("knn top-1: 0.")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_offers_what_the_protocol_describes(name):
    assert isinstance(find_format(name), Format)
