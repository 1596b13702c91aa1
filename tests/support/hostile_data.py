"""The rows of test_hostile.py about packed data sets and about the images that are to be packed."""

from support.hostile import (
    Row,
    cut_off,
    flip_bit,
    folder,
    gone,
    holds,
    link,
    make_pipe,
    manifest,
    unsupported,
)

TRAIN = "train.py -c {config}"
ON_DATA = f"{TRAIN} data.dir={{data}}"
VERIFY = "tools/convert.py --verify --out {data}"
DIGITS = "tools/convert.py --dataset digits"
CONVERT = "tools/convert.py --dataset folder --source {photos} --out {tmp}/out --workers 1"

PACKED = [
    Row(
        "data.dir not set",
        f"{TRAIN} data.dir=",
        "data.dir is not set: give data.dir=PACKED_DIR; tools/convert.py makes packed data sets",
    ),
    Row(
        "data missing",
        f"{TRAIN} data.dir={{tmp}}/absent",
        "{tmp}/absent: no such folder; tools/convert.py makes packed data sets",
    ),
    Row(
        "data that is a file",
        f"{TRAIN} data.dir={{file}}",
        "{file}: not a folder; tools/convert.py makes packed data sets",
    ),
    Row(
        "data not packed",
        f"{TRAIN} data.dir={{photos}}",
        "{photos}: no manifest.json: not a packed data set; tools/convert.py makes one",
    ),
    Row("manifest cut off", ON_DATA, "{data}/manifest.json: cannot be read: ...", cut_off("data", "manifest.json")),
    Row(
        "manifest of another version",
        ON_DATA,
        "{data}/manifest.json: version 9 instead of 2; convert the data set again",
        manifest(version=9),
    ),
    Row(
        "manifest of other types",
        ON_DATA,
        "{data}/manifest.json: splits must be train, optionally val",
        manifest(splits=[]),
    ),
    Row(
        "manifest nested endlessly",
        ON_DATA,
        "{data}/manifest.json: cannot be read: maximum recursion ...",
        holds("data", "[" * 100_000, "manifest.json"),
    ),
    Row(
        "file cut off",
        ON_DATA,
        "{data}/train.npy: has 144,064 bytes, the manifest says 288,128: cut off or replaced",
        cut_off("data", "train.npy"),
    ),
    Row(
        "file missing",
        ON_DATA,
        "{data}/train-labels.npy: missing, though the manifest lists it",
        gone("data", "train-labels.npy"),
    ),
    Row(
        "a changed bit, in training",
        ON_DATA,
        "{data}/train.npy: sample 1499 does not match its checksum in train-crc32.npy: damaged, pack the data again",
        flip_bit,
    ),
    Row(
        "a changed bit, to --verify",
        VERIFY,
        "{data}/train.npy: its SHA-256 is not the manifest's: damaged or replaced",
        flip_bit,
    ),
    Row("--verify of nothing", "tools/convert.py --verify", "--verify needs --out or --dataset"),
    Row(
        "loader of another format",
        f"{TRAIN} data.loader=ffcv",
        "data.loader=ffcv reads format ffcv, {digits} is resident: set data.loader=auto or pack the data in another "
        "format",
    ),
    Row(
        "images larger than the canvas",
        f"{TRAIN} data.canvas=4",
        "{digits}: images are 8 pixels long, more than data.canvas=4: set data.canvas=8 or pack again with "
        "--max-resolution 4",
    ),
]

KINDS = ".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp .gif .jfif .jpe .mpo .pnm .pbm"
SKIP = "(--on-error skip leaves it out)"
SOURCE = [
    Row("source missing", f"{CONVERT} --source {{tmp}}/absent", "{tmp}/absent: no such folder"),
    Row("source that is a file", f"{CONVERT} --source {{file}}", "{file}: not a folder"),
    Row("no source", "tools/convert.py --dataset folder", "--dataset folder needs --source DIR"),
    Row("no data set", "tools/convert.py --out {tmp}/out", "--dataset is required"),
    Row(
        "unknown data set",
        "tools/convert.py --dataset imagenet",
        "argument --dataset: 'imagenet' is none of digits, ...",
    ),
    Row("unknown format", f"{DIGITS} --format tar", "argument --format: invalid choice: 'tar' ..."),
    Row("quality", f"{DIGITS} --quality 101", "argument --quality: 101 must be between 1 and 100"),
    Row("resolution", f"{DIGITS} --max-resolution 0", "argument --max-resolution: 0 must be between 1 and 65500"),
    Row(
        "resolution in words",
        f"{DIGITS} --max-resolution large",
        "argument --max-resolution: invalid whole number value: 'large'",
    ),
    Row("workers", f"{DIGITS} --workers -1", "argument --workers: -1 must be between 0 and 1024"),
    Row("fraction", f"{DIGITS} --val-fraction 1", "argument --val-fraction: 1 must be between 0 and 1, both excluded"),
    Row("fraction with val", f"{CONVERT} --val-fraction 0.1", "--val-fraction: the source has images for val already"),
    Row(
        "quality of pixels",
        f"{CONVERT} --format resident --quality 9",
        "--quality cannot be used with --format resident, which stores pixels",
    ),
    Row("empty folder", f"{CONVERT} --source {{empty}}", f"{{empty}}: holds no image ({KINDS})"),
    Row("empty class", CONVERT, f"train/bird: holds no image ({KINDS}) {SKIP}", folder("train/bird")),
    Row("only unsupported kinds", CONVERT, f"train/cat: holds no image ({KINDS}) {SKIP}", unsupported),
    Row(
        "class in val only",
        CONVERT,
        "{photos}/val: 1 of its classes are not in train/, the first is 'bird'",
        folder("val/bird"),
    ),
    Row(
        "images beside classes",
        CONVERT,
        "{photos}/train: holds class folders and loose images (a.jpg); it must be one or the other",
        holds("photos", "", "train/a.jpg"),
    ),
    Row(
        "web page named as an image",
        CONVERT,
        "train/cat/0.jpg: is not an image of a known format, but a web page: convert it to PNG or JPEG " + SKIP,
        holds("photos", "<html>", "train/cat/0.jpg"),
    ),
    Row("val without train", CONVERT, "{photos}: has val/ but no train/", gone("photos", "train")),
    Row("pipe", CONVERT, f"train/cat/9.jpg: is not a regular file {SKIP}", make_pipe),
    Row("link to nowhere", CONVERT, f"train/cat/9.jpg: cannot be read: No such file or directory {SKIP}", link("no")),
    Row(
        "link to itself",
        CONVERT,
        f"train/cat/9.jpg: cannot be read: Too many levels of symbolic links {SKIP}",
        link("9.jpg"),
    ),
    Row("link to a parent is left out", CONVERT, "", link(".."), 0),
    Row(
        "empty image",
        CONVERT,
        f"train/cat/0.jpg: is empty (0 bytes) {SKIP}",
        holds("photos", "", "train/cat/0.jpg"),
    ),
    Row("image cut off", CONVERT, "train/cat/0.jpg: cannot be decoded: ...", cut_off("photos", "train/cat/0.jpg")),
    Row(
        "text named as an image",
        CONVERT,
        f"train/cat/0.jpg: is not an image of a known format {SKIP}",
        holds("photos", "hello", "train/cat/0.jpg"),
    ),
    Row(
        "line break in a name",
        CONVERT,
        f"train/cat/a b.jpg: is empty (0 bytes) {SKIP}",
        holds("photos", "", "train/cat/a\nb.jpg"),
    ),
    Row(
        "archive that is none",
        "tools/convert.py --dataset cifar10 --source {file}",
        "{file}: cannot be read as a tar archive: ...",
    ),
    Row(
        "out holds other files",
        f"{DIGITS} --out {{photos}}",
        "{photos}: is neither empty nor only a packed data set; name another --out",
    ),
    Row(
        "out holds a data set",
        f"{DIGITS} --out {{data}}",
        "{data}: already holds a packed data set; --force replaces it",
    ),
    Row("out below a file", f"{DIGITS} --out {{file}}/x", "cannot pack digits into {file}/x: ..."),
]
