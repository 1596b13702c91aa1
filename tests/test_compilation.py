"""The step is compiled once, because all that changes between steps is a tensor. Its update takes few kernels."""

import copy
import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training import first_batch

from vssl.engine.compilation import compile_step
from vssl.engine.trainer import Trainer


@pytest.fixture
def backend(monkeypatch):
    """A backend that generates no code: whether to compile again is decided before that, and it would take long."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("method", ["vssl", "byol"])
def test_after_the_first_batch_nothing_is_compiled_again(config, backend, method):
    trainer = Trainer(config(f"method.name={method}", "data.limit=96", "data.workers=1"))
    step, loader = trainer.train_step, trainer.loader
    assert compile_step(step, next(iter(loader)))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 2  # the augmentation; forward with loss

    with torch._dynamo.config.patch(error_on_recompile=True):
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            for number, batch in enumerate(loader):
                if (epoch, number) == (1, 1):
                    saved = copy.deepcopy((loader.state_dict(), step.state_dict()))
                step.set_schedule(epoch, 0.01 * number, 0.1 / (1 + epoch), 0.99 + 0.001 * number)
                step(batch)
        loader.load_state_dict(saved[0])
        step.load_state_dict(saved[1])
        for batch in loader:
            step.set_schedule(7, 0.003, 0.0, 1.0)
            step(batch)
        step.metrics.read()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs

        with pytest.raises(torch._dynamo.exc.RecompileError):
            step(type(batch)(*(part[:-1] for part in batch)))


class Dispatched(TorchDispatchMode):
    """Counts the operations that reach the device; a foreach or fused one counts once."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "lars", "sgd"])
def test_the_number_of_operations_of_an_update_does_not_grow_with_the_network(config, tmp_path, optimizer):
    counts = []
    for backbone in ("resnet8", "resnet18"):
        trainer = Trainer(
            config(f"model.backbone={backbone}", f"optim.name={optimizer}", f"run.dir={tmp_path / backbone}")
        )
        loss = trainer.train_step.backward(first_batch(trainer))["loss"]
        trainer.train_step.update(loss)  # the first makes the optimizer's state
        with Dispatched() as dispatched:
            trainer.train_step.update(loss)
        counts.append(dispatched.count)
    assert counts[0] == counts[1] > 0
