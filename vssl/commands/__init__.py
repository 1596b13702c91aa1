"""The programs, one file each, and the modules that they share.

A program is a module with ``main(words, prog)``: the words of its command line (None: those of this process) and the
name that its messages give it (None: that of the file that was started); it returns an exit code, None for 0. The
docstring of its module is its help. ``vssl NAME``, which ``vssl.__main__`` reads, runs the program of that name.
"""

__all__ = ["PROGRAMS"]

# Each is the name of a module here.
PROGRAMS = (
    "convert",
    "train",
    "evaluate",
    "embed",
    "export",
    "report",
    "views",
    "plot",
    "throughput",
)
