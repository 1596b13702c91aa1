"""Ways to damage packed samples."""

import shutil

import numpy as np

from pipelines.formats import find_format
from pipelines.formats.checksums import checksum, checksum_file
from pipelines.formats.dali import format as format_dali
from pipelines.formats.ffcv import format as format_ffcv
from pipelines.formats.packed import open_packed
from pipelines.formats.resident import format as format_resident


def stored(folder, form, index):
    """The file that holds a training sample, and the sample's slice of it."""
    if form == "ffcv":
        path = folder / "train.beton"
        table = format_ffcv.read_table(path)
    elif form == "dali":
        path = format_dali.shard_path(folder, "train", 0)
        table = format_dali.read_table(folder, "train")
    else:
        path = folder / "train.npy"
        pixels = format_resident.open_arrays(folder, "train")[0]
        start = pixels.offset + index * pixels[0].nbytes
        return path, slice(start, start + pixels[0].nbytes)
    return path, slice(table.starts[index], table.starts[index] + table.lengths[index])


def damaged(packed, tmp_path, change, *indices, trusted=False):
    """A copy of a packed data set in which ``change`` was applied to the bytes of training samples, uint8 [bytes] each.

    ``trusted``: the checksums are those of the damaged samples, so they do not reveal the damage.
    """
    folder = shutil.copytree(packed.dir, tmp_path / "damaged")
    labels, sizes = find_format(packed.format).read_labels_and_sizes(folder, "train")
    checksums = np.load(folder / checksum_file("train"))
    for index in indices:
        path, part = stored(folder, packed.format, index)
        content = np.fromfile(path, np.uint8)
        change(content[part])
        content.tofile(path)
        checksums[index] = checksum(int(labels[index]), *sizes[index].tolist(), content[part])
    if trusted:
        np.save(folder / checksum_file("train"), checksums)
    return open_packed(folder)


def flip_bit(rng):
    """Flips one bit, anywhere."""

    def change(data):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)

    return change


def marker(data, code):
    """Where a JPEG's segment begins."""
    return data.tobytes().index(bytes([0xFF, code]))


def cut_off(data):
    data[len(data) // 2 :] = 0


def end_early(data):
    data[len(data) // 2 : len(data) // 2 + 2] = 0xFF, 0xD9


def destroy_start(data):
    data[:2] = 0


def destroy_scan(data):
    middle = len(data) // 2
    data[middle : middle + 200] = np.random.default_rng(0).integers(0, 256, 200)


def destroy_huffman_table(data):
    start = marker(data, 0xC4)
    data[start + 5 : start + 21] = 0xFF


def halve_height(data):
    start = marker(data, 0xC0)
    height = (int(data[start + 5]) << 8 | int(data[start + 6])) // 2
    data[start + 5 : start + 7] = height >> 8, height & 0xFF


def change_width_by_one(data):
    """The number of blocks of 16 pixels stays the same, so the decoder reports no error."""
    start = marker(data, 0xC0)
    data[start + 8] += 1 if data[start + 8] % 16 else -1


def double_width(data):
    start = marker(data, 0xC0)
    width = (int(data[start + 7]) << 8 | int(data[start + 8])) * 2
    data[start + 7 : start + 9] = width >> 8, width & 0xFF


DAMAGES = [
    cut_off,
    end_early,
    destroy_start,
    destroy_scan,
    destroy_huffman_table,
    halve_height,
    change_width_by_one,
    double_width,
]
