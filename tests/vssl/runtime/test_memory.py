"""Out of memory is one line."""

import pytest
import torch

from pipelines.errors import UserError
from vssl.runtime.memory import explain_out_of_memory


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory of the GPU: remedy"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out of memory of the GPU: remedy"),
        (MemoryError(), "out of memory of the host: remedy"),
    ],
)
def test_out_of_memory_is_one_line(error, line):
    with pytest.raises(UserError, match=f"^{line}$"), explain_out_of_memory("remedy"):
        raise error


def test_torchs_allocator_of_host_memory_is_understood():
    with pytest.raises(UserError, match="of the host"), explain_out_of_memory("remedy"):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("remedy"):
        raise RuntimeError("shape mismatch")
