"""What each source lists, in which order and with which labels; and how a wrong layout is refused."""

import hashlib
import io
import pickle
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import UserError
from pipelines.sources import cifar, load_source
from pipelines.sources.imagenet100 import IMAGENET100
from support.packing import tar_member, touch

# ------------------------------------------------------------------------------------------------ digits


def test_digits_are_scaled_stratified_and_always_the_same():
    first, second = load_source("digits"), load_source("digits")
    train, val = first.splits["train"], first.splits["val"]
    assert first.classes == tuple("0123456789")
    assert (train.images.shape, val.images.shape) == ((1500, 8, 8, 3), (297, 8, 8, 3))
    assert train.images.dtype == np.uint8 and (train.images.min(), train.images.max()) == (0, 255)
    assert (train.images[..., 0] == train.images[..., 2]).all()
    assert np.bincount(val.labels).min() >= 28 and np.bincount(val.labels).max() <= 31
    assert train.names[3] == "train[3]" and train.labels.dtype == np.int64
    assert (second.splits["train"].images == train.images).all() and (second.splits["val"].labels == val.labels).all()


def test_digits_take_no_source(tmp_path):
    with pytest.raises(UserError, match="takes no --source"):
        load_source("digits", tmp_path)


# ------------------------------------------------------------------------------------------------ folder


def test_class_folders_are_sorted_and_labelled_by_place(tmp_path):
    touch(
        tmp_path, "train/dog/b.jpg", "train/dog/a.PNG", "train/cat/deep/er/1.webp", "train/cat/2.jpeg", "test/dog/9.jpg"
    )
    source = load_source("folder", tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.splits["train"].names == [
        "train/cat/2.jpeg",
        "train/cat/deep/er/1.webp",
        "train/dog/a.PNG",
        "train/dog/b.jpg",
    ]
    assert source.splits["train"].images[2] == str(tmp_path / "train/dog/a.PNG")
    assert source.splits["train"].labels.tolist() == [0, 0, 1, 1]
    assert source.splits["val"].names == ["test/dog/9.jpg"]
    assert source.splits["val"].labels.tolist() == [1]


def test_val_is_preferred_to_test_and_unread_folders_are_reported(tmp_path, caplog):
    touch(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "test/a/3.jpg", "extra/a/4.jpg")
    assert load_source("folder", tmp_path).splits["val"].names == ["val/a/2.jpg"]
    assert "reading only train/ and val/; ignored: extra, test" in caplog.text


def test_class_folders_alone_are_train(tmp_path):
    source = load_source("folder", touch(tmp_path, "b/1.jpg", "a/1.jpg"))
    assert (source.classes, list(source.splits)) == (("a", "b"), ["train"])


def test_a_flat_folder_has_no_labels(tmp_path):
    source = load_source("folder", touch(tmp_path, "2.jpg", "1.jpg"))
    assert (source.classes, source.splits["train"].names) == ((), ["1.jpg", "2.jpg"])
    assert source.splits["train"].labels.tolist() == [-1, -1]


def test_an_unlabelled_test_beside_a_labelled_train(tmp_path):
    source = load_source("folder", touch(tmp_path, "train/a/1.jpg", "test/2.jpg"))
    assert source.classes == ("a",)
    assert source.splits["val"].labels.tolist() == [-1]


def test_hidden_and_other_files_are_ignored_and_counted(tmp_path, caplog):
    touch(tmp_path, "a/1.jpg", "a/._1.jpg", "a/notes.txt", "a/.git/2.jpg", ".cache/3.jpg")
    source = load_source("folder", tmp_path)
    assert (source.classes, source.splits["train"].names) == (("a",), ["a/1.jpg"])
    assert "ignored 2 files that are not images: ._1.jpg, notes.txt" in caplog.text


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "elsewhere/x/1.jpg", "data/a/2.jpg")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "data/a/again").symlink_to(tmp_path / "data/a")
    assert load_source("folder", tmp_path / "data").splits["train"].names == ["a/2.jpg", "b/1.jpg"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no image"),
        (["notes.txt"], "holds no image"),
        (["train/a/notes.txt", "train/b/notes.txt"], r"train/a: holds no image"),
        (["train/a/1.jpg", "val/b/1.jpg"], r"val: 1 of its classes are not in train/, the first is 'b'"),
        (["train/1.jpg", "val/b/1.jpg"], r"val: 1 of its classes are not in train/, the first is 'b'"),
        (["a/1.jpg", "2.jpg"], r"holds class folders and loose images \(2.jpg\)"),
        (["val/a/1.jpg"], "has val/ but no train/"),
    ],
)
def test_a_wrong_folder_is_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as caught:
        load_source("folder", touch(tmp_path, *files))
    assert str(tmp_path) in str(caught.value)


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--dataset folder needs --source DIR"):
        load_source("folder")
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        load_source("folder", tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ ImageNet-100


def imagenet(root: Path, split: str, wnids: tuple[str, ...]) -> Path:
    return touch(root, *(f"{split}/{wnid}/{wnid}_{number}.JPEG" for wnid in wnids for number in (1, 0)))


def test_the_list_has_100_sorted_ids():
    assert len(set(IMAGENET100)) == 100 and list(IMAGENET100) == sorted(IMAGENET100)
    digest = hashlib.sha256("\n".join(IMAGENET100).encode()).hexdigest()
    assert digest.startswith("d61d354b64beb3ce")


def test_in100_picks_its_classes_from_imagenet(tmp_path):
    for split in ("train", "val"):
        imagenet(tmp_path, split, (*IMAGENET100, "n00000001", "n99999999"))
    source = load_source("in100", tmp_path)
    assert source.classes == IMAGENET100
    for split in ("train", "val"):
        assert source.splits[split].labels.tolist() == [label for label in range(100) for _ in range(2)]
    assert source.splits["val"].names[2] == f"val/{IMAGENET100[1]}/{IMAGENET100[1]}_0.JPEG"


def test_in100_without_val_warns(tmp_path, caplog):
    assert list(load_source("in100", imagenet(tmp_path, "train", IMAGENET100)).splits) == ["train"]
    assert "no val/ folder" in caplog.text


def test_in100_names_missing_classes(tmp_path):
    imagenet(tmp_path, "train", IMAGENET100[3:])
    with pytest.raises(UserError, match=f"3 of the 100 classes are missing, the first is {IMAGENET100[0]}"):
        load_source("in100", tmp_path)
    with pytest.raises(UserError, match="no train/ folder"):
        load_source("in100", tmp_path / "train")


# ------------------------------------------------------------------------------------------------ CIFAR


def planes(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32, 3] to CIFAR's rows of a red, a green and a blue plane."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), 3072)


def cifar_files(dataset: str, protocol: int = 2) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The unpacked archive's files, and the images uint8 [N, 32, 32, 3] and labels of train and then test."""
    rng = np.random.default_rng(1)
    batches = ["train", "test"] if dataset == "cifar100" else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    folder, classes = ("cifar-100-python", 100) if dataset == "cifar100" else ("cifar-10-batches-py", 10)
    images = rng.integers(0, 256, (len(batches) * 4, 32, 32, 3), np.uint8)
    labels = rng.integers(0, classes, len(images))
    files = {}
    for number, batch in enumerate(batches):
        rows = slice(4 * number, 4 * number + 4)
        key = b"fine_labels" if dataset == "cifar100" else b"labels"
        content = {b"data": planes(images[rows]), key: labels[rows].tolist(), b"batch_label": b"training batch"}
        files[f"{folder}/{batch}"] = pickle.dumps(content, protocol)
    names = {b"fine_label_names" if classes == 100 else b"label_names": [b"class %03d" % i for i in range(classes)]}
    files[f"{folder}/meta" if classes == 100 else f"{folder}/batches.meta"] = pickle.dumps(names, protocol)
    return files, images, labels


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in others:
            tar.addfile(member)
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ["archive", "folder with archive", "unpacked", "folder with unpacked"])
def test_cifar_from_every_kind_of_source(tmp_path, dataset, kind, protocol):
    files, images, labels = cifar_files(dataset, protocol)
    folder = next(iter(files)).split("/")[0]
    if "archive" in kind:
        name = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[dataset]
        archive = write_tar(tmp_path / name, files)
        place = archive if kind == "archive" else tmp_path
    else:
        write_files(tmp_path, files)
        place = tmp_path / folder if kind == "unpacked" else tmp_path
    source = load_source(dataset, place)
    assert source.classes[7] == "class 007"
    assert (source.splits["train"].images == images[:-4]).all() and (source.splits["val"].images == images[-4:]).all()
    assert np.concatenate([source.splits[s].labels for s in ("train", "val")]).tolist() == labels.tolist()


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


class MaliciousCodec:
    def __reduce__(self):
        import _codecs

        return (_codecs.encode, ("x", "rot13"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Malicious()), r"it asks for pathlib"),
        (pickle.dumps({b"data": MaliciousCodec()}), "codec rot13"),
        (b"cnumpy.f2py.crackfortran\nmyeval\n(S'1'\ntR.", r"it asks for numpy.f2py.crackfortran.myeval"),
        (b"garbage", "not a CIFAR batch"),
        (pickle.dumps([1]), "not a dictionary"),
        (
            pickle.dumps({b"data": np.zeros((4, 3071), np.uint8), b"labels": [0] * 4}),
            "not a uint8 array of 3072 columns",
        ),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.float32), b"labels": [0] * 4}), "not a uint8 array"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0] * 3}), "not a list of 4 labels"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}), "must be class indices below 10"),
    ],
)
def test_a_file_that_is_not_a_batch_is_refused_and_executes_nothing(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    files, _, _ = cifar_files("cifar10")
    files["cifar-10-batches-py/data_batch_2"] = content
    with pytest.raises(UserError, match=reason) as caught:
        load_source("cifar10", write_files(tmp_path, files))
    assert "data_batch_2" in str(caught.value)
    assert not Path("executed").exists()


def test_an_incomplete_folder_is_refused(tmp_path):
    files, _, _ = cifar_files("cifar10")
    del files["cifar-10-batches-py/data_batch_3"]
    with pytest.raises(UserError, match="no data_batch_3"):
        load_source("cifar10", write_files(tmp_path / "unpacked", files))
    with pytest.raises(UserError, match="no cifar-10-batches-py/data_batch_3 in it"):
        load_source("cifar10", write_tar(tmp_path / "small.tar.gz", files))
    with pytest.raises(UserError, match=r"holds neither cifar-10-python.tar.gz nor"):
        load_source("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (tar_member("../outside"), "points outside"),
        (tar_member("cifar-10-batches-py/../../outside"), "points outside"),
        (tar_member("/etc/outside"), "points outside"),
        (tar_member("cifar-10-batches-py/link", tarfile.SYMTYPE), "is a link"),
        (tar_member("cifar-10-batches-py/link", tarfile.LNKTYPE), "is a link"),
        (tar_member("cifar-10-batches-py/device", tarfile.CHRTYPE), "is a link"),
        (tar_member("cifar-10-batches-py/test_batch"), "there twice"),
    ],
)
def test_an_archive_with_an_odd_member_is_refused(tmp_path, odd, reason):
    files, _, _ = cifar_files("cifar10")
    with pytest.raises(UserError, match=f"refused, its member .*{reason}"):
        load_source("cifar10", write_tar(tmp_path / "odd.tar.gz", files, odd))


def test_a_truncated_archive_is_refused(tmp_path):
    path = write_tar(tmp_path / "cut.tar.gz", cifar_files("cifar10")[0])
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="cannot be read as a tar archive"):
        load_source("cifar10", path)


def served(monkeypatch, path: Path) -> None:
    """Download from a file, and take the small archive's checksum as the published one."""
    monkeypatch.setattr(cifar, "URL", path.parent.as_uri() + "/")
    archive = cifar.ARCHIVES["cifar10"]._replace(file=path.name, md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", archive)


def test_a_download_is_checked_kept_and_reused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server").mkdir()
    served(monkeypatch, write_tar(tmp_path / "server/small.tar.gz", cifar_files("cifar10")[0]))
    assert len(load_source("cifar10").splits["train"].images) == 20
    assert [path.name for path in cifar.DOWNLOADS.iterdir()] == ["small.tar.gz"]
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert len(load_source("cifar10").splits["val"].images) == 4


def test_a_download_with_another_checksum_is_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server").mkdir()
    path = write_tar(tmp_path / "server/small.tar.gz", cifar_files("cifar10")[0])
    served(monkeypatch, path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError, match="does not have the published MD5"):
        load_source("cifar10")
    assert list(cifar.DOWNLOADS.iterdir()) == []


def test_a_file_in_downloads_with_another_checksum_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cifar.DOWNLOADS.mkdir(parents=True)
    write_tar(cifar.DOWNLOADS / "cifar-10-python.tar.gz", cifar_files("cifar10")[0])
    with pytest.raises(UserError, match="not the published file"):
        load_source("cifar10")


def test_without_network_the_error_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifar, "URL", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match=r"put it at data/downloads/cifar-10-python.tar.gz, or name it with --source"):
        load_source("cifar10")
    assert list(cifar.DOWNLOADS.iterdir()) == []


def test_real_images_in_cifars_layout_are_read_correctly(tmp_path):
    """Red, green and blue are not mixed up."""
    files, _, _ = cifar_files("cifar10")
    image = np.asarray(Image.linear_gradient("L").resize((32, 32)))
    red = np.stack([image, np.zeros_like(image), np.zeros_like(image)], axis=-1)[None]
    files["cifar-10-batches-py/test_batch"] = pickle.dumps({b"data": planes(red), b"labels": [3]})
    val = load_source("cifar10", write_files(tmp_path, files)).splits["val"]
    assert (val.images == red).all() and val.labels.tolist() == [3]
