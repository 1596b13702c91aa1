"""The rows of test_hostile.py about the programs that read what a run has written."""

from support.hostile import (
    Row,
    cut_off,
    gone,
    holds,
    link,
    make_pipe,
    name_in_latin1,
    of_other_width,
    one_class,
    unlabelled,
)
from support.hostile_data import KINDS, SKIP

KNN = "tools/evaluate.py {run} --protocol knn"
UNCERTAINTY = "tools/evaluate.py {run} --protocol uncertainty"
REPORT = "tools/report.py {run} --out {tmp}/r.html"
PLOT = "tools/plot.py {run} --out {tmp}/p.png"
EMBED = "tools/embed.py {run} {photos} --out {tmp}/e.parquet"
FEATURES = "; --features writes the backbone's features instead"
GONE = "{tmp}/absent: no such folder; tools/convert.py makes packed data sets"
FEWER = "{packed}: evaluation needs labelled images in train and val, 2 of each; "

TOOLS = [
    Row("no such program", "evalute {run}", "no program 'evalute'; did you mean 'evaluate'? vssl --help lists all"),
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
    Row("out of distribution, for kNN", f"{KNN} --ood {{data}}", "--ood: --protocol knn has no option protocol.ood"),
    Row("a chart of kNN", f"{KNN} --plot {{tmp}}/k.png", "--plot: --protocol knn draws no chart"),
    Row("unknown protocol", "tools/evaluate.py {run} --protocol probe", "--protocol must be knn or linear or ..."),
    Row(
        "unknown key of a protocol",
        f"{KNN} protocol.temprature=5",
        "unknown config key 'protocol.temprature'; did you mean 'protocol.temperature'?",
    ),
    Row(
        "key of another protocol", f"{KNN} protocol.epochs=5", "unknown config key 'protocol.epochs'; did you mean ..."
    ),
    Row("protocol's key out of bounds", f"{KNN} protocol.k=0", "protocol.k must be at least 1, not 0"),
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
