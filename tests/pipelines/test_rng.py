"""The counter-based numbers: what they depend on, and how they are distributed."""

import pytest
import torch
from scipy import stats

from pipelines.rng import Draws, normal, uniform

WORD = 2**64
GAMMA, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(value: int) -> int:
    value = (value ^ (value >> 30)) * MIX_1 % WORD
    value = (value ^ (value >> 27)) * MIX_2 % WORD
    return value ^ (value >> 31)


def one_number(seed: int, epoch: int, index: int, stream: int, draw: int) -> float:
    """One number of ``uniform``, computed with Python's unbounded integers."""
    state = mix((index + GAMMA) % WORD)
    for word in (seed, epoch, stream):
        state = mix(state ^ ((word * MIX_2 + GAMMA) % WORD))
    return (mix((state ^ draw) * GAMMA % WORD) >> 11) / 2**53


def test_mixer_is_splitmix64() -> None:
    # First outputs of Vigna's splitmix64.c with seed 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [mix((1234567 + GAMMA * step) % WORD) for step in (1, 2, 3, 4)] == published


def test_uniform_is_the_hash_whatever_the_order_and_the_batch() -> None:
    index = torch.tensor([0, 1, 2, 1_281_166, 2**40, 7])
    for seed, epoch, stream in [(0, 0, 0), (1, 0, 1), (2**31 - 1, 999, 1000)]:
        numbers = uniform(seed, epoch, index, stream, 5)
        expected = [[one_number(seed, epoch, i, stream, draw) for draw in range(5)] for i in index.tolist()]
        assert numbers.dtype == torch.float64
        assert numbers.tolist() == expected


def test_seed_and_epoch_may_be_tensors() -> None:
    index = torch.arange(10)
    numbers = uniform(torch.tensor(3), torch.tensor(8), index, 1, 4)
    assert torch.equal(numbers, uniform(3, 8, index, 1, 4))
    assert torch.equal(normal(torch.tensor(3), torch.tensor(8), index, 1, 4), normal(3, 8, index, 1, 4))


def test_fewer_draws_are_the_first_of_more() -> None:
    index = torch.arange(10)
    assert torch.equal(uniform(0, 0, index, 0, 7), uniform(0, 0, index, 0, 20)[:, :7])


def test_names_with_a_place_get_the_numbers_of_uniform_from_there_on() -> None:
    index = torch.arange(10)
    draws = Draws(3, 8, index, streams=(0, 1), offsets={"first": 0, "later": 5})
    for view in (0, 1):
        expected = uniform(3, 8, index, view, 12)
        assert torch.equal(draws.uniform("first", 5)[:, view], expected[:, :5])
        assert torch.equal(draws.uniform("later", 7)[:, view], expected[:, 5:])


def test_other_names_have_their_own_numbers_whatever_else_is_drawn() -> None:
    index = torch.arange(500)
    draws = Draws(3, 8, index, streams=(0, 1), offsets={"fixed": 0})
    names = ["fixed", "fade", "fade amount", "edge", "a", "b", "ab", "ba"]
    numbers = torch.stack([draws.uniform(name, 4) for name in names])
    assert len(numbers.unique()) == numbers.numel()
    assert stats.kstest(numbers[1:].flatten(), "uniform").pvalue > 1e-4
    correlation = torch.corrcoef(numbers.flatten(2).permute(0, 2, 1).reshape(-1, 500))
    assert correlation.sub(torch.eye(len(correlation))).abs().max() < 0.25
    alone = Draws(torch.tensor(3), torch.tensor(8), index, streams=(0, 1), offsets={})
    assert torch.equal(alone.uniform("edge", 2), numbers[names.index("edge"), ..., :2])


def test_every_argument_matters() -> None:
    index = torch.arange(50)
    settings = [(seed, epoch, stream) for seed in range(4) for epoch in range(4) for stream in range(4)]
    numbers = torch.stack([uniform(seed, epoch, index, stream, 36) for seed, epoch, stream in settings])
    assert len(numbers.unique()) == numbers.numel()


@pytest.mark.parametrize("across", ["index", "draw", "seed", "epoch", "stream"])
def test_uniform_is_uniform_and_neighbours_are_independent(across: str) -> None:
    count, one = 20_000, torch.tensor([5])
    numbers = {
        "index": lambda: uniform(1, 2, torch.arange(count), 0, 1)[:, 0],
        "draw": lambda: uniform(1, 2, one, 0, count)[0],
        "seed": lambda: torch.cat([uniform(seed, 2, one, 0, 1)[0] for seed in range(count // 10)]),
        "epoch": lambda: torch.cat([uniform(1, epoch, one, 0, 1)[0] for epoch in range(count // 10)]),
        "stream": lambda: torch.cat([uniform(1, 2, one, stream, 1)[0] for stream in range(count // 10)]),
    }[across]()
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4
    pairs = (numbers * 8).long()
    table = torch.bincount(8 * pairs[:-1] + pairs[1:], minlength=64)
    assert stats.chisquare(table).pvalue > 1e-4
    lowest_bits = (numbers * 2**53).long() % 16
    assert stats.chisquare(torch.bincount(lowest_bits, minlength=16)).pvalue > 1e-4


def test_normal_is_normal() -> None:
    numbers = normal(0, 0, torch.arange(4000), 1000, 7)
    assert numbers.shape == (4000, 7)
    assert numbers.dtype == torch.float32
    assert numbers.isfinite().all()
    assert stats.kstest(numbers.flatten(), "norm").pvalue > 1e-4
    correlation = torch.corrcoef(numbers.T) - torch.eye(7)
    assert correlation.abs().max() < 0.06
    # Sine and cosine of one angle share a radius; that must not correlate the squares.
    assert torch.corrcoef(numbers.square().T).sub(torch.eye(7)).abs().max() < 0.06


@pytest.mark.slow
def test_compiled_numbers_are_the_same() -> None:
    index, epoch = torch.arange(70), torch.tensor(3)

    def draw(epoch: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        draws = Draws(0, epoch, index, streams=(0, 1), offsets={"flip": 30})
        return torch.cat([draws.uniform("flip"), draws.uniform("fade", 37)], dim=-1)

    assert torch.equal(torch.compile(draw, fullgraph=True)(epoch, index), draw(epoch, index))


@pytest.mark.gpu
def test_every_device_gives_the_same_numbers() -> None:
    index, epoch = torch.arange(1000), torch.tensor(3)
    assert torch.equal(uniform(0, epoch.cuda(), index.cuda(), 1, 37).cpu(), uniform(0, epoch, index, 1, 37))
    by_name = (Draws(0, 3, where, streams=(0, 1), offsets={}).uniform("fade", 3) for where in (index.cuda(), index))
    assert torch.equal(*(numbers.cpu() for numbers in by_name))
    torch.testing.assert_close(normal(0, 3, index.cuda(), 1, 36).cpu(), normal(0, 3, index, 1, 36))
