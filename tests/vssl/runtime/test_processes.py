"""What processes exchange over gloo, and how they end together."""

import pytest
import torch
from torch import nn

from vssl.collectives import Peers, gather_equal
from vssl.methods.vssl import implied_gaussian_log_likelihood, implied_log_likelihood
from vssl.models.norm import BatchNorm1d, BatchNorm2d, synchronise_statistics
from vssl.runtime.processes import World

pytestmark = pytest.mark.ddp


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_the_marginal_of_the_implied_decoder_is_that_of_all_processes(processes, leave_one_out):
    z, mu, logvar = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))

    def implied(rows, peers):
        arguments = {"temperature": 0.2, "leave_one_out": leave_one_out, "peers": peers}
        cosine = implied_log_likelihood(z[rows], mu[rows], **arguments)
        return torch.stack([cosine, implied_gaussian_log_likelihood(z[rows], mu[rows], logvar[rows], **arguments)])

    def work(world):
        return implied(slice(3 * world.rank, 3 * world.rank + 3), Peers(True)).tolist()

    found = torch.cat([torch.tensor(part) for part in processes(2, work)], dim=1)
    torch.testing.assert_close(found, implied(slice(None), Peers()))


@pytest.mark.parametrize(("kind", "shape"), [(BatchNorm1d, (12, 5)), (BatchNorm2d, (12, 5, 3, 4))])
def test_synchronised_statistics_are_those_of_the_whole_batch(processes, kind, shape):
    torch.manual_seed(0)
    # A mean far from 0: sums of squares would lose the variance in float32.
    x, weight = 100.0 + torch.randn(shape) * torch.arange(1, 13).view(-1, *[1] * (len(shape) - 1)), torch.randn(shape)
    reference = getattr(nn, kind.__name__)(5)
    whole = x.clone().requires_grad_()
    expected = reference(whole)
    (expected * weight).sum().backward()

    def work(world):
        norm = kind(5)
        synchronise_statistics(norm)
        mine = x.chunk(3)[world.rank].clone().requires_grad_()
        out = norm(mine)
        (out * weight.chunk(3)[world.rank]).sum().backward()
        state = {key: value.numpy() for key, value in norm.state_dict().items()}
        return out.detach().numpy(), mine.grad.numpy(), state, norm.weight.grad.numpy()

    results = processes(3, work)

    def joined(place):
        return torch.cat([torch.from_numpy(result[place]) for result in results])

    torch.testing.assert_close(joined(0), expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(joined(1), whole.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        sum(torch.from_numpy(result[3]) for result in results), reference.weight.grad, rtol=1e-3, atol=1e-3
    )
    for key in ("running_mean", "running_var"):
        for result in results:
            torch.testing.assert_close(torch.from_numpy(result[2][key]), getattr(reference, key), rtol=1e-4, atol=1e-4)


def test_a_single_process_agrees_with_itself():
    world = World()
    rows = torch.ones(3, 2)
    assert world.agree(15) == 15 and world.is_main and world.broadcast("x") == "x"
    assert world.gather(rows) is rows and world.mean({"a": 2.0}) == {"a": 2.0}
    assert bool(world.all(torch.tensor(True))) and world.sum(rows) is rows


def test_processes_exchange_values(processes):
    def work(world):
        rows = torch.full((2 * world.rank, 2), float(world.rank))  # the first has none
        own = torch.ones(1, 3, requires_grad=True)
        (gather_equal(own) * (world.rank + 1)).sum().backward()
        buffers = [torch.full((2,), float(world.rank)), torch.full((1, 1), 3.0 * world.rank)]
        world.average(buffers)
        return {
            "agreed": world.agree(15 if world.rank == 1 else 0),
            "broadcast": world.broadcast({"from": world.rank}),
            "gathered": world.gather(rows).tolist(),
            "mean": world.mean({"a": float(world.rank)}),
            "sum": world.sum(torch.tensor([world.rank, 1])).tolist(),
            "all": [bool(world.all(torch.tensor(flag))) for flag in (True, world.rank != 1)],
            "gradient": own.grad.tolist(),
            "average": [buffer.flatten().tolist() for buffer in buffers],
        }

    for answer in processes(3, work):
        assert answer == {
            "agreed": 15,
            "broadcast": {"from": 0},
            "gathered": [[1.0, 1.0]] * 2 + [[2.0, 2.0]] * 4,
            "mean": {"a": 1.0},
            "sum": [3, 3],
            "all": [True, False],
            "gradient": [[6.0] * 3],
            "average": [[1.0, 1.0], [3.0]],
        }


def test_a_bug_in_one_process_shows_its_traceback_and_ends_all(processes):
    def broken(world):
        world.agree()
        if world.rank == 1:
            raise ZeroDivisionError("a bug")
        world.agree()

    processes(2, broken, codes=[1, 1])
    assert "ZeroDivisionError: a bug" in processes.output(1) and processes.output(0) == ""
