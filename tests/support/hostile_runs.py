"""The rows of test_hostile.py about configs, and about runs that start or continue."""

from support.hostile import Row, all_checkpoints, holds, of_byol
from support.hostile_data import TRAIN

RESUME = f"{TRAIN} run.dir={{run}} --resume auto"

CONFIG = [
    Row("unknown key", f"{TRAIN} train.colour=3", "unknown config key 'train.colour'; did you mean 'train.loggers'?"),
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
    Row("endless nesting", TRAIN, "{config} is not valid YAML: maximum recursion ...", holds("config", "[" * 20_000)),
    Row(
        "code in YAML",
        TRAIN,
        "{config} is not valid YAML: could not determine a constructor for the tag ...",
        holds("config", "train: !!python/object/apply:os.system [ls]\n"),
    ),
    Row("config that is no text", TRAIN, "{config} is not valid YAML: 'utf-8' codec ...", holds("config", b"\xff\xfe")),
    Row("config missing", "train.py -c absent.yaml", "cannot read the config absent.yaml: No such file or directory"),
    Row(
        "config of no such name",
        "train.py -c absent",
        "no config 'absent': give a YAML file, or one of cifar100_fast, cifar10_fast, demo, folder, in100_fast",
    ),
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
