"""CUDA graphs: capture work once, to replay it; release all of them before a process group ends."""

import weakref
from collections.abc import Callable

import torch

__all__ = ["capture", "release_graphs", "warm_up_calls"]

_graphs: "weakref.WeakSet[torch.cuda.CUDAGraph]" = weakref.WeakSet()


def warm_up_calls(distributed: bool = False) -> int:
    """The number of ordinary calls before a capture: lazy initialisation, compilation and autotuning must not be
    captured; where gradients are exchanged, DistributedDataParallel arranges its buckets and times itself in its first
    ten."""
    return 11 if distributed else 3


def capture(work: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Record what ``work`` does on ``stream`` as a graph, without executing it; ``warm_up_calls`` calls come first.

    Every replay reads and writes the memory of the recording. torch reserves what was allocated then, in pinned memory
    too (``_foreach_norm`` copies its table of addresses from there), for as long as the graph exists.
    """
    graph = torch.cuda.CUDAGraph()
    # thread_local: loader threads may allocate memory and wait for the device during the capture.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        work()
    _graphs.add(graph)
    return graph


def release_graphs() -> None:
    """Destroy the graphs of all captures that still exist; none can be replayed then.

    To be called before a process group ends: since version 2.26 NCCL waits, without limit, until no graph holds one of
    its operations, and an exception's traceback may still hold a graph.
    """
    for graph in list(_graphs):
        graph.reset()
