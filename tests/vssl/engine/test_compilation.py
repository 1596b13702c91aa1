"""The step is compiled once, because all that changes between steps is a tensor. Its update takes few kernels."""

import copy

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.batch import Batch
from support.training import first_batch
from vssl.engine.compilation import compile_step
from vssl.engine.trainer import Trainer


@pytest.mark.parametrize("method", ["vssl", "byol"])
def test_after_the_first_batch_nothing_is_compiled_again(config, compile_with, method):
    compile_with("eager")
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


def test_the_compiled_step_reads_and_writes_no_more_images_than_its_layers_need(config, compile_with):
    """What a GPU's time is spent on, seen in the graphs from which code is generated."""
    graphs = {}

    def keep(name):
        def compiler(graph, _):
            graphs[name] = graph.graph
            return make_boxed_func(graph.forward)

        return compiler

    compile_with(
        aot_autograd(
            fw_compiler=keep("forward"),
            bw_compiler=keep("backward"),
            inference_compiler=keep("views"),
            decompositions=select_decomp_table(),
            partition_fn=min_cut_rematerialization_partition,
        )
    )
    trainer = Trainer(config("train.amp=bf16", "data.batch_size=24", "data.workers=1"))
    step = trainer.train_step
    assert compile_step(step, first_batch(trainer))

    def count(name, operation):
        return sum(node.target is operation for node in graphs[name].nodes)

    aten, modules = torch.ops.aten, list(step.method.modules())
    convolutions = sum(isinstance(part, torch.nn.Conv2d) for part in step.method.student.modules())
    norms = sum(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in modules)
    # Both views at once: one convolution per layer in student and teacher, one pass for the statistics of a norm.
    assert count("forward", aten.convolution.default) == 2 * convolutions
    assert count("backward", aten.convolution_backward.default) == convolutions
    assert count("forward", aten.var_mean.correction) == norms
    # Kept for the backward pass: each convolution's input and output, in the precision in which it computes.
    (kept,) = (node.args[0] for node in graphs["forward"].nodes if node.op == "output")
    values = [node.meta["val"] for node in kept if node is not None and "val" in node.meta]
    rows = 2 * len(first_batch(trainer).index)
    images = [value for value in values if isinstance(value, torch.Tensor) and value.ndim == 4 and len(value) == rows]
    assert 0 < len(images) <= 2 * convolutions
    assert {image.dtype for image in images} <= {torch.bfloat16, torch.bool}  # bool: where a ReLU let through
    # F.cosine_similarity bounds norms by a tensor, F.normalize by a number; Triton 3.6 compiles no kernel with both.
    assert (count("forward", aten.clamp_min.Tensor), count("forward", aten.clamp_min.default) > 0) == (0, True)
    # No shape depends on a value of the device, which the step would have to wait for.
    values = [node.meta.get("val") for graph in graphs.values() for node in graph.nodes]
    assert not any(free_unbacked_symbols(value) for value in values if isinstance(value, torch.Tensor))


class Dispatched(TorchDispatchMode):
    """Counts the operations that reach the device; a foreach or fused one counts once, a view not at all."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "lars", "sgd", "muon"])
def test_the_number_of_operations_of_an_update_does_not_grow_with_the_network(config, tmp_path, optimizer):
    """Muon's grows with the number of different shapes."""
    counts = []
    for backbone in ("resnet18", "resnet34") if optimizer == "muon" else ("resnet8", "resnet18"):
        trainer = Trainer(
            config(f"model.backbone={backbone}", f"optim.name={optimizer}", f"run.dir={tmp_path / backbone}")
        )
        loss = trainer.train_step.backward(first_batch(trainer))["loss"]
        trainer.train_step.update(loss)  # the first makes the optimizer's state
        with Dispatched() as dispatched:
            trainer.train_step.update(loss)
        counts.append(dispatched.count)
    assert counts[0] == counts[1] > 0


def test_any_number_of_shapes_can_be_compiled(config, compile_with):
    """Ragged batches, micro-batches and growing views have one each; torch's own limit is 8."""
    compile_with("eager")
    trainer = Trainer(config("data.workers=1"))
    step, batch = trainer.train_step, first_batch(trainer)
    assert compile_step(step, batch)
    for images in range(4, 24):
        step(Batch(*(part[:images] for part in batch)))
    assert step.metrics.read()["loss"] > 0
