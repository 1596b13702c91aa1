"""What a wrong input answers: a table of command lines, damages, and the one line that the user then reads."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import finish, small_config
from hostile import (
    Place,
    Row,
    all_checkpoints,
    cut_off,
    gone,
    holds,
    link,
    make_pipe,
    name_in_latin1,
    of_byol,
    of_other_width,
    one_class,
    unlabelled,
)
from hostile_data import KINDS, PACKED, SKIP, SOURCE, TRAIN
from programs import run_program

from pipelines.errors import run_command

RESUME = f"{TRAIN} run.dir={{run}} --resume auto"
KNN = "tools/evaluate.py {run} --protocol knn"
UNCERTAINTY = "tools/evaluate.py {run} --protocol uncertainty"
REPORT = "tools/report.py {run} --out {tmp}/r.html"
PLOT = "tools/plot.py {run} --out {tmp}/p.png"
EMBED = "tools/embed.py {run} {photos} --out {tmp}/e.parquet"

CONFIG = [
    Row("unknown key", f"{TRAIN} train.colour=3", "unknown config key 'train.colour'; did you mean 'train.compile'?"),
    Row("near-miss key", f"{TRAIN} train.epoch=3", "unknown config key 'train.epoch'; did you mean 'train.epochs'?"),
    Row("key of another section", f"{TRAIN} train.tau=0", "unknown config key 'train.tau'; did you mean 'method.tau'?"),
    Row(
        "key of another method",
        f"{TRAIN} method.variance_weight=1",
        "method.variance_weight is an option of method.name=vicreg, not of vssl",
    ),
    Row("unknown method", f"{TRAIN} method.name=simclr", "method.name must be vssl or byol or ..."),
    Row("wrong type", f"{TRAIN} train.epochs=many", "train.epochs must be an integer, not 'many'"),
    Row("out of bounds", f"{TRAIN} train.epochs=0", "train.epochs must be at least 1, not 0"),
    Row("not finite", f"{TRAIN} optim.lr=.inf", "optim.lr must be a finite number, not inf"),
    Row("key as a flag", f"{TRAIN} --epochs 3", "--epochs is not a flag but a config key: write train.epochs=3"),
    Row("unknown flag", f"{TRAIN} --gpus 3", "unrecognized arguments: --gpus"),
    Row("no value", f"{TRAIN} train.epochs", "override 'train.epochs' must have the form section.key=value"),
    Row("impossible date", f"{TRAIN} run.dir=2025-13-01", "override 'run.dir=2025-13-01': the value is not valid YAML"),
    Row("date as text", f"{TRAIN} run.dir=2025-12-01", "run.dir must be text, not datetime.date(2025, 12, 1)"),
    Row(
        "YAML that is no mapping",
        TRAIN,
        "{config} must hold sections of keys, as configs/demo.yaml does",
        holds("config", "- 1\n"),
    ),
    Row("section that is a value", TRAIN, "train must be a section of keys, not 5", holds("config", "train: 5\n")),
    Row(
        "empty section",
        f"{TRAIN} data.dir={{empty}}",
        "{empty}: no manifest.json: ...",
        holds("config", "train:\ndata:"),
    ),
    Row(
        "section given twice",
        TRAIN,
        "{config} is not valid YAML: found 'train' twice ...",
        holds("config", "train: {epochs: 3}\ntrain: {seed: 1}\n"),
    ),
    Row("endless nesting", TRAIN, "{config} is not valid YAML: maximum recursion ...", holds("config", "[" * 500)),
    Row(
        "code in YAML",
        TRAIN,
        "{config} is not valid YAML: could not determine a constructor for the tag ...",
        holds("config", "train: !!python/object/apply:os.system [ls]\n"),
    ),
    Row("config that is no text", TRAIN, "{config} is not valid YAML: 'utf-8' codec ...", holds("config", b"\xff\xfe")),
    Row("config missing", "train.py -c absent.yaml", "cannot read the config absent.yaml: No such file or directory"),
    Row("config that is a folder", "train.py -c {empty}", "cannot read the config {empty}: Is a directory"),
    Row("no config", "train.py", "the following arguments are required: -c/--config"),
    Row("weights missing", f"{TRAIN} model.weights=w", "cannot read the weights w: ..."),
    Row("weights that are none", f"{TRAIN} model.weights={{file}}", "cannot read the weights {file}: ..."),
]

OTHER = "that would be another run; set it back, or start a new run in another run.dir"
ALONE = "leaves BatchNorm (and losses that compare images) a single image, whose variance is 0"
RUN = [
    Row(
        "run.dir holds a run",
        f"{TRAIN} run.dir={{run}}",
        "run.dir={run} already holds a run; continue it with --resume auto, or name another",
    ),
    Row("run.dir below a file", f"{TRAIN} run.dir={{file}}/x", "cannot use run.dir={file}/x: Not a directory"),
    Row("run.dir not set", f"{TRAIN} run.dir=", "run.dir is empty: name a folder for the run"),
    Row("resume of nothing", f"{TRAIN} --resume {{tmp}}/absent", "no checkpoint at {tmp}/absent"),
    Row("resume of no run", f"{TRAIN} --resume {{empty}}", "{empty} holds no whole checkpoint"),
    Row(
        "resume of no checkpoint",
        f"{TRAIN} --resume {{file}}",
        "{file} is not a whole checkpoint: not a whole file of ...",
    ),
    Row("other backbone", f"{RESUME} model.backbone=resnet18", f"model.backbone was resnet8, now resnet18: {OTHER}"),
    Row("other batch size", f"{RESUME} data.batch_size=16", f"data.batch_size was 32, now 16: {OTHER}"),
    Row("other seed", f"{RESUME} train.seed=1", f"train.seed was 0, now 1: {OTHER}"),
    Row("other method", RESUME, f"method.name was vssl, now byol: {OTHER}", of_byol),
    Row(
        "other data",
        f"{RESUME} data.dir={{packed}} data.batch_size=4",
        "data.dir was {digits} (SHA-256 ...",
    ),
    Row(
        "all checkpoints damaged",
        RESUME,
        "none of the 1 checkpoints in {run}/checkpoints is whole: remove them to start afresh",
        all_checkpoints,
    ),
    Row(
        "batch larger than the data",
        f"{TRAIN} data.batch_size=512",
        "no batch to train on: 320 images, data.batch_size=512, data.drop_last=True",
    ),
    Row(
        "limit too small",
        f"{TRAIN} data.limit=8",
        "no batch to train on: 8 images, data.batch_size=32, data.drop_last=True",
    ),
    Row(
        "batch of one image",
        f"{TRAIN} data.batch_size=1",
        f"data.batch_size=1 {ALONE}: make it at least 2 (processes: 1, train.accumulate=1)",
    ),
    Row(
        "micro-batches of one image",
        f"{TRAIN} data.batch_size=2 train.accumulate=2",
        f"data.batch_size=2 {ALONE}: make it at least 4 (processes: 1, train.accumulate=2)",
    ),
    Row(
        "unequal micro-batches",
        f"{TRAIN} train.accumulate=3",
        "data.batch_size=32 cannot be shared equally by 1 processes with train.accumulate=3: make it a multiple of 3",
    ),
    Row("views that shrink", f"{TRAIN} train.first_size=16", "train.first_size=16 must not exceed data.image_size=8"),
    Row("fp16 on a CPU", f"{TRAIN} train.amp=fp16", "train.amp=fp16 needs a GPU; use bf16 or off"),
    Row(
        "no GPU",
        f"{TRAIN} train.device=cuda",
        "device cuda: torch sees no CUDA device here; use cpu or auto",
    ),
    Row(
        "learning rate that explodes",
        f"{TRAIN} optim.lr=1e38 train.log_every=1",
        "the loss or a gradient was not finite in 1 of the last steps, first in step 2; they changed nothing, the last "
        "checkpoint is kept, and {tmp}/new/diagnosis.json has the batch and the last healthy figures: lower optim.lr "
        "or set train.clip_grad",
    ),
]

FEATURES = "; --features writes the backbone's features instead"
GONE = "{tmp}/absent: no such folder; tools/convert.py makes packed data sets"
FEWER = "{packed}: evaluation needs labelled images in train and val, 2 of each; "
TOOLS = [
    Row(
        "evaluate nothing",
        "tools/evaluate.py absent --protocol knn",
        "absent: no such run, checkpoint or exported backbone",
    ),
    Row(
        "evaluate no run",
        "tools/evaluate.py {empty} --protocol knn",
        "{empty}: no config.yaml of its run in it: give --config FILE",
    ),
    Row("evaluate no checkpoint", KNN, "{run} holds no whole checkpoint", gone("run", "checkpoints")),
    Row(
        "evaluate another file",
        "tools/evaluate.py {metrics} --protocol knn",
        "cannot read the weights {metrics}: not a whole file of ...",
    ),
    Row(
        "evaluate an export cut off",
        "tools/evaluate.py {export} --protocol knn",
        "cannot read the weights {export}: ...",
        cut_off("export"),
    ),
    Row(
        "evaluate with another config",
        f"{KNN} --config {{config}}",
        "{run} does not fit its config: size mismatch ...",
        of_other_width,
    ),
    Row(
        "evaluate without a GPU", f"{KNN} --device cuda", "device cuda: torch sees no CUDA device here; use cpu or auto"
    ),
    Row("evaluate on nothing", f"{KNN} --data {{tmp}}/absent", GONE),
    Row("evaluate without labels", f"{KNN} --data {{packed}}", FEWER + "train has fewer", unlabelled),
    Row("evaluate without val", f"{KNN} --data {{packed}}", FEWER + "val has fewer", gone("photos", "val")),
    Row("evaluate one class", f"{KNN} --data {{packed}}", "", one_class, 0),
    Row("evaluate a batch of 0", f"{KNN} --batch-size 0", "argument --batch-size: 0 must be at least 1"),
    Row("out of distribution, missing", f"{UNCERTAINTY} --ood {{tmp}}/absent", GONE),
    Row("out of distribution, for kNN", f"{KNN} --ood {{data}}", "--ood and --plot belong to --protocol uncertainty"),
    Row(
        "uncertainty of BYOL",
        "tools/evaluate.py {byol} --protocol uncertainty",
        "method.name=byol has no variance",
    ),
    Row(
        "uncertainty of an export",
        "tools/evaluate.py {export} --protocol uncertainty",
        "{export} is a backbone alone, without a variance: give its run or a checkpoint",
    ),
    Row("JSON below a file", f"{KNN} --json {{file}}/k.json", "cannot write {file}/k.json: Not a directory"),
    Row("JSON to a folder", f"{KNN} --json {{empty}}", "cannot write {empty}: it is a directory"),
    Row("JSON to a pipe", f"{KNN} --json {{pipe}}", "cannot write {pipe}: it is not a regular file"),
    Row("export nothing", "tools/export.py absent --out {tmp}/b", "no checkpoint at absent"),
    Row("export no run", "tools/export.py {empty} --out {tmp}/b", "{empty} holds no whole checkpoint"),
    Row("export below a file", "tools/export.py {run} --out {file}/b", "cannot write {file}/b: Not a directory"),
    Row("report of no runs", "tools/report.py --out {tmp}/r.html", "the following arguments are required: RUN"),
    Row(
        "report of nothing",
        "tools/report.py absent --out {tmp}/r.html",
        "absent: not a run directory, which train.py writes to run.dir",
    ),
    Row(
        "report of no run",
        "tools/report.py {empty} --out {tmp}/r.html",
        "cannot read {empty}/metrics.jsonl: No such file or directory",
    ),
    Row("report of damaged metrics", REPORT, "cannot read {metrics}: Expecting ...", cut_off("metrics")),
    Row(
        "report without its environment",
        REPORT,
        "cannot read {run}/environment.json: No such file or directory",
        gone("run", "environment.json"),
    ),
    Row("report below a file", "tools/report.py {run} --out {file}/r", "cannot write {file}/r: Not a directory"),
    Row(
        "curves of other lines",
        PLOT,
        "{metrics}: line 2 is not a measurement: it has no step and epoch",
        holds("metrics", '{"step": 1, "epoch": 0.1}\n5\n'),
    ),
    Row("curves of no text", PLOT, "cannot read {metrics}: 'utf-8' codec can't decode ...", holds("metrics", b"\xff")),
    Row("curves below a file", "tools/plot.py {run} --out {file}/p", "cannot write {file}/p: Not a directory"),
    Row("views of nothing", "tools/views.py -c {config} data.dir={tmp}/absent --out {tmp}/v.png", GONE),
    Row("views to a folder", "tools/views.py -c {config} --out {empty}", "cannot write {empty}: it is a directory"),
    Row("throughput of nothing", "tools/throughput.py -c {config} data.dir={tmp}/absent", GONE),
    Row(
        "throughput of no batch",
        "tools/throughput.py -c {config} data.batch_size=512",
        "no batch to train on: 320 images, data.batch_size=512, data.drop_last=True",
    ),
    Row(
        "throughput in no time",
        "tools/throughput.py -c {config} --seconds nan",
        "argument --seconds: nan must be greater than 0",
    ),
    Row(
        "throughput, JSON below a file",
        "tools/throughput.py -c absent --json {file}/t",
        "cannot write {file}/t: Not a directory",
    ),
    Row(
        "throughput, trace below a file",
        "tools/throughput.py -c absent --trace {file}/t",
        "cannot write {file}/t: Not a directory",
    ),
    Row(
        "step, JSON below a file",
        "tools/compare_step.py -c absent --json {file}/s",
        "cannot write {file}/s: Not a directory",
    ),
    Row("compare nothing", "tools/compare.py", "the following arguments are required: WHAT"),
    Row(
        "compare an unknown loader",
        "tools/compare.py loaders --source {photos} --only best --work {tmp}/w",
        "no loader 'best'; there are vssl ffcv; ...",
    ),
    Row(
        "compare loaders on no images",
        "tools/compare.py loaders --source {empty} --work {tmp}/w",
        "{empty}: no .jpg or .jpeg files there",
    ),
    Row("compare loaders on nothing", "tools/compare.py loaders --packed {tmp}/absent --work {tmp}/w", GONE),
    Row(
        "compare loaders, JSON below a file",
        "tools/compare.py loaders --source absent --json {file}/l",
        "cannot write {file}/l: Not a directory",
    ),
    Row(
        "compare an arm without a name",
        "tools/compare.py methods -c {config} --arm method.beta=2 --work {tmp}/w",
        "--arm 'method.beta=2' must have the form 'NAME key=value ...'",
    ),
    Row(
        "compare an arm with a wrong key",
        "tools/compare.py methods -c {config} --arm 'x method.nme=byol' --work {tmp}/w",
        "unknown config key 'method.nme'; did you mean 'method.name'?",
    ),
    Row(
        "compare methods, chart below a file",
        "tools/compare.py methods -c absent --plot {file}/m",
        "cannot write {file}/m: Not a directory",
    ),
    Row(
        "embed with no run",
        "tools/embed.py {empty} {photos} --out {tmp}/e.parquet",
        "{empty}: no config.yaml of its run in it: give --config FILE",
    ),
    Row("embed nothing", "tools/embed.py {run} absent --out {tmp}/e.parquet", "absent: no such folder or picture"),
    Row(
        "embed an empty folder",
        "tools/embed.py {run} {empty} --out {tmp}/e.parquet",
        f"{{empty}}: holds no image ({KINDS})",
    ),
    Row("embed with BYOL", f"{EMBED} --config {{byol}}/config.yaml", "{run} does not fit its config: ..."),
    Row(
        "embed without variance",
        "tools/embed.py {byol} {photos} --out {tmp}/e.parquet",
        f"method.name=byol has no variance{FEATURES}",
    ),
    Row(
        "embed with an export",
        "tools/embed.py {export} {photos} --out {tmp}/e.parquet",
        f"{{export}} is a backbone alone, without a variance: give its run or a checkpoint{FEATURES}",
    ),
    Row(
        "embed a damaged picture",
        EMBED,
        "train/cat/0.jpg: cannot be decoded: ...",
        cut_off("photos", "train/cat/0.jpg"),
    ),
    Row("embed a pipe", EMBED, f"train/cat/9.jpg: is not a regular file {SKIP}", make_pipe),
    Row("embed a link to a parent once", EMBED, "", link(".."), 0),
    Row(
        "embed nothing usable",
        "tools/embed.py {run} {file} --out {tmp}/e.parquet --on-error skip",
        "none of the 1 images can be used; the first: file: is not an image of a known format",
    ),
    Row(
        "embed a name that is not UTF-8",
        EMBED,
        "'train/cat/\\udce9.jpg': the name is not UTF-8, as a Parquet file needs it: rename it",
        name_in_latin1,
    ),
    Row("embed over a file", "tools/embed.py {run} {photos} --out {file}", "{file}: already exists; --force ..."),
    Row("embed below a file", "tools/embed.py {run} {photos} --out {file}/e", "cannot write {file}/e: Not a directory"),
]

ROWS = [*CONFIG, *PACKED, *SOURCE, *RUN, *TOOLS]


# How the docs name the members of Place.
DOCUMENTED = {
    "config": "c.yaml",
    "data": "packed",
    "packed": "other",
    "photos": "photos",
    "run": "runs/a",
    "byol": "runs/b",
    "empty": "empty",
    "pipe": "pipe",
    "tmp": ".",
}


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A finished run, of which a row gets a copy."""
    return finish(small_config(digits, tmp_path_factory.mktemp("runs") / "run", "train.epochs=1"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_wrong_input_is_one_line(row, digits, trained, tmp_path):
    if "no CUDA" in row.said and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "embed.py" in row.command:
        pytest.importorskip("pyarrow")
    place = Place(tmp_path, digits, trained)
    if row.damage is not None:
        row.damage(place)
    words = [word.format_map(place) for word in shlex.split(row.command)]
    said = row.said.format_map(place)
    before = set(tmp_path.iterdir())

    done = run_program(*words)

    line, whole = one_line(done.stderr, Path(words[0]).name), not said.endswith("...")
    assert done.returncode == row.code
    assert line == said if whole else line.startswith(said.removesuffix("..."))
    left = {path.name for path in set(tmp_path.iterdir()) - before}
    assert row.code == 0 or left <= {"new", "w"}  # a run's directory, a comparison's folder


def one_line(printed, program):
    """What standard error says, without ``error: ``: nothing, or a line; before it only argparse's usage, and which
    checkpoints were passed over."""
    rest = re.sub(rf"\Ausage: .*?^(?={re.escape(program)}: error)", "", printed, flags=re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^passed over: .*\n", "", rest, flags=re.MULTILINE)
    if rest == "":
        return ""
    line = re.fullmatch(rf"(?:{re.escape(program)}: )?error: (.*)\n", rest)
    assert line, printed
    return line[1]


def test_there_are_many_and_no_two_alike():
    assert len(ROWS) > 100 and len({row.name for row in ROWS}) == len({row[1:] for row in ROWS}) == len(ROWS)


def test_the_docs_show_rows_of_the_table():
    text = Path("docs/reliability.md").read_text().split("## What a wrong input answers")[1].split("\n## ")[0]
    shown = [line for line in text.splitlines() if line.startswith("|")][2:]
    rows = {row.name: row for row in ROWS}
    for line in shown:
        row = rows[line.split(" | ")[0].removeprefix("| ")]
        command, said = row.command.format_map(DOCUMENTED), row.said.format_map(DOCUMENTED)
        assert line == f"| {row.name} | `{command}` | {said} |"
    assert len(shown) > 15


def test_ctrl_c_is_no_traceback(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert (end.value.code, capsys.readouterr().err) == (130, "stopped\n")
