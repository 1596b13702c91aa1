"""Tar archives from others: nothing is unpacked, and an archive with an unsafe member is refused."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.errors import UserError

__all__ = ["read_members"]

_MAX_MEMBER = 2**30  # bytes


def read_members(
    path: Path, wanted: Callable[[tarfile.TarInfo], bool], mode: str = "r"
) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Each file in an archive, with its content if it is wanted, otherwise None.

    Args:
        path: the archive.
        wanted: whether to read a file's content.
        mode: ``r``, or ``r:`` for archives that must not be compressed.

    Raises:
        UserError: it is not such an archive, or is cut off; a member's name points outside; or a member is a link, a
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
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a tar archive: {error}") from error
