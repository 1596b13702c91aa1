"""Tar archives from others: nothing is unpacked, and an archive with an unsafe member is refused."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.errors import UserError

__all__ = ["read_members"]

_MAX_MEMBER = 2**30  # bytes
_BLOCK = 512  # bytes


def read_members(
    path: Path, wanted: Callable[[tarfile.TarInfo], bool], mode: str = "r"
) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Each file in an archive, with its content if it is wanted, otherwise None.

    Args:
        path: the archive.
        wanted: whether to read a file's content.
        mode: ``r``, or ``r:`` for archives that must not be compressed.

    Raises:
        UserError: it is not such an archive, is cut off, has a damaged header or, if it is not compressed, is not read
            to the end marker that its format wants; a member's name points outside; or a member is a link, a
            device, or larger than 1 GiB.
    """
    try:
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            for member in tar:
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise UserError(f"{path}: refused, its member {member.name!r} points outside")
                plain = member.isfile() and not member.issparse() and member.size <= _MAX_MEMBER
                if not (plain or member.isdir()):
                    raise UserError(f"{path}: refused, its member {member.name!r} is a link, a device or too large")
                if plain:
                    file = tar.extractfile(member) if wanted(member) else None
                    yield member, None if file is None else file.read()
            if mode == "r:":
                _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a tar archive: {error}") from error


def _check_end(path: Path, offset: int) -> None:
    """Raise ``UserError`` unless two blocks of zeros and nothing else are at ``offset``, where reading has ended.

    tarfile takes anything that is no header for the end.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        found, zeros = 0, True
        while zeros and (rest := file.read(2**20)):
            zeros = not rest.strip(b"\0")
            found += len(rest) if zeros else len(rest) - len(rest.lstrip(b"\0"))
    if not zeros:
        reason = "further data follow an end marker, as in joined archives" if found >= _BLOCK else "damaged header"
        raise UserError(f"{path}: refused, {reason} at byte {offset + found // _BLOCK * _BLOCK:,}: write it anew")
    if found < 2 * _BLOCK:
        raise UserError(f"{path}: refused, it ends without an end marker: it is cut off; copy or write it anew")
