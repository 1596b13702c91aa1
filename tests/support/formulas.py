"""What the tests of losses share: small sizes, and how a formula is compared with its reference."""

import torch

B, D = 6, 10


def assert_same_value_and_gradient(ours, reference, inputs):
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), inputs, retain_graph=True, allow_unused=True),
        torch.autograd.grad(reference.sum(), inputs, retain_graph=True, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def embeddings(seed=0):
    """A student's embeddings [2B, D], with gradients, and a teacher's."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2 * B, D, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher
