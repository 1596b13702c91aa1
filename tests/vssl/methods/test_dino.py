"""DINO: its loss and centre against by-hand references, its head, and runs with one and with two processes."""

import copy
import functools
import math

import pytest
import torch
from torch.nn import functional as F

from pipelines.batch import Views
from pipelines.errors import UserError
from support.training import assert_a_killed_run_ends_the_same, everything, first_batch, losses, measured
from support.views import keys, random_views
from vssl.engine.compilation import compile_step
from vssl.engine.config import load_config, resolve
from vssl.engine.trainer import Trainer
from vssl.methods import build_method
from vssl.methods.dino import DINOHead, dino_loss
from vssl.methods.pairs import ViewCounts
from vssl.models.config import ModelConfig

B, K = 4, 6
TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}
SMALL = ("method.name=dino", "method.prototypes=24")


@pytest.fixture
def cosines():
    """The student's and the teacher's [2B, K], and a centre [K]."""
    torch.manual_seed(0)
    return (torch.rand(2 * B, K) * 2 - 1).requires_grad_(), torch.rand(2 * B, K) * 2 - 1, torch.rand(K) * 0.2


def softmax(row, temperature):
    exponentials = [(value / temperature).exp() for value in row]
    return [value / sum(exponentials) for value in exponentials]


def cross_entropy(teacher, student, centre):
    """H(t, s) of a view, mean over its images, in double precision, entry by entry."""
    total = 0.0
    for t, s in zip(teacher.double(), student.double(), strict=True):
        target, choice = softmax(t - centre.double(), 0.04), softmax(s, 0.1)
        total = total - sum(p * q.log() for p, q in zip(target, choice, strict=True))
    return total / len(teacher)


def test_loss_and_gradient_are_those_by_hand(cosines):
    student, teacher, centre = cosines
    (s1, s2), (t1, t2) = student.chunk(2), teacher.chunk(2)
    terms = dino_loss(student, teacher, centre, **TEMPERATURES)
    reference = cross_entropy(t1, s2, centre) / 2 + cross_entropy(t2, s1, centre) / 2
    torch.testing.assert_close(terms["loss"].double(), reference, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value, student)[0] for value in (terms["loss"], reference)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_loss_of_multi_crop_is_that_of_a_written_out_double_loop():
    """Algorithm 1 with local views: every full view of the teacher with every other view of the student."""
    torch.manual_seed(0)
    full, local = 3, 2
    student, teacher = (torch.rand(views * B, K) * 2 - 1 for views in (full + local, full))
    student.requires_grad_()
    centre, total, terms = torch.rand(K) * 0.2, 0.0, 0
    for t in range(full):
        for s in range(full + local):
            if s != t:
                total = total + cross_entropy(teacher[t * B : (t + 1) * B], student[s * B : (s + 1) * B], centre)
                terms += 1
    loss = dino_loss(student, teacher, centre, ViewCounts(full, local), **TEMPERATURES)["loss"]
    torch.testing.assert_close(loss.double(), total / terms, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value, student)[0] for value in (loss, total / terms)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_teachers_temperature_warms_up(config):
    warm = ("method.warmup_teacher_temperature_epochs=4", "method.teacher_temperature=0.07")
    options = resolve(config(*SMALL, *warm)).method
    method = build_method(options, ModelConfig(backbone="resnet8"), 8)
    found = [float(method._teacher_temperature(torch.tensor(epoch))) for epoch in range(6)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])  # numpy.linspace(0.04, 0.07, 4), then constant


def test_the_loss_is_the_targets_entropy_plus_the_divergence_from_it(cosines):
    student, teacher, centre = cosines
    terms = dino_loss(student, teacher, centre, **TEMPERATURES)
    targets = torch.distributions.Categorical(logits=(torch.cat(teacher.chunk(2)[::-1]) - centre) / 0.04)
    choices = torch.distributions.Categorical(logits=student / 0.1)
    assert terms["target_entropy"].item() == pytest.approx(targets.entropy().mean().item(), rel=1e-4)
    divergence = torch.distributions.kl_divergence(targets, choices).mean().item()
    assert terms["kl"].item() == pytest.approx(divergence, rel=1e-4)
    assert not terms["kl"].requires_grad and not terms["target_entropy"].requires_grad


def test_the_teacher_gets_no_gradient(cosines):
    student, teacher, centre = cosines
    teacher.requires_grad_()
    dino_loss(student, teacher, centre, **TEMPERATURES)["loss"].backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_the_centre_removes_what_all_images_share(cosines):
    student, teacher, _ = cosines
    one = torch.zeros(K).index_fill(0, torch.tensor(2), 1.0)
    # A teacher that chooses prototype 2 for every image has targets without entropy. With its centre subtracted, they
    # are uniform.
    alike = one.expand(2 * B, K)
    sharp, centred = (dino_loss(student, alike, c, **TEMPERATURES)["target_entropy"].item() for c in (one * 0, one))
    assert sharp < 1e-6 and centred == pytest.approx(math.log(K))
    # The centre removes a constant added to all cosines of a prototype.
    plain = dino_loss(student, teacher, torch.zeros(K), **TEMPERATURES)["loss"]
    shifted = dino_loss(student, teacher + one, one, **TEMPERATURES)["loss"]
    torch.testing.assert_close(plain, shifted, rtol=1e-4, atol=1e-5)


def test_the_head_gives_cosines_as_a_weight_normalised_layer_would(cosines):
    torch.manual_seed(0)
    head = DINOHead(12, 16, 8, K)
    reference = torch.nn.utils.parametrizations.weight_norm(copy.deepcopy(head.prototypes))
    reference.parametrizations.weight.original0.data.fill_(1.0)
    features, weight = torch.randn(2 * B, 12), torch.randn(2 * B, K)
    ours, theirs = head(features), reference(F.normalize(head.mlp(features), dim=1))
    torch.testing.assert_close(ours, theirs)
    assert ours.abs().max() <= 1 + 1e-6
    (ours * weight).sum().backward(retain_graph=True)
    (theirs * weight).sum().backward()
    torch.testing.assert_close(head.prototypes.weight.grad, reference.parametrizations.weight.original1.grad)
    with torch.no_grad():
        head.prototypes.weight.mul_(3.0)
    torch.testing.assert_close(head(features), ours)


@pytest.fixture
def method(config):
    torch.manual_seed(0)
    return build_method(resolve(config(*SMALL)).method, ModelConfig(backbone="resnet8"), 8).train()


def views():
    return random_views(B, side=8), keys(torch.arange(B), 1)


def test_the_centre_is_the_moving_average_of_the_teachers_outputs(method):
    inputs, expected = views(), torch.zeros(24, dtype=torch.float64)
    method.expect(*inputs)  # which a call of the teacher alone does not know
    for _ in range(3):
        _, outputs = method.teacher(inputs[0].full)
        expected = 0.9 * expected + 0.1 * outputs.double().mean(dim=0)
        method(*inputs)
        torch.testing.assert_close(method.centre.double(), expected, rtol=1e-5, atol=1e-7)
    assert any(buffer is method.centre for buffer in method.guarded_buffers())


def test_outputs_of_bfloat16_networks_are_float32_and_the_teacher_gets_no_gradient(method):
    method.autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    loss, features, metrics = method(*views())
    assert {value.dtype for value in (loss, method.centre, *metrics.values())} == {torch.float32}
    assert features.shape == (2 * B, method.width)
    with method.autocast():
        assert method.student(views()[0].full)[1].dtype == torch.float32
    loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in method.student.parameters())
    assert all(weight.grad is None for weight in method.teacher.parameters())


def test_prototypes_have_no_gradient_while_they_are_frozen(method):
    images, _ = views()
    gradients = {}
    for epoch in (0, 1):
        method.zero_grad()
        method(images, keys(torch.arange(B), epoch)).loss.backward()
        gradients[epoch] = method.student.projector.prototypes.weight.grad.abs().sum().item()
        assert method.student.projector.mlp[0].weight.grad.abs().sum() > 0
    assert gradients[0] == 0 and gradients[1] > 0


# Unit vectors of 64 dimensions can be equally near to 64 prototypes; of 8 dimensions they cannot.
WIDE = ("method.latent=64", "method.projector_hidden=64", "method.prototypes=64", "optim.name=adamw")


def test_the_student_learns_from_a_fixed_teacher(config, tmp_path):
    Trainer(config("method.name=dino", *WIDE, "method.tau=1", "method.centre_momentum=1", "optim.lr=0.01")).fit()
    first, *_, last = measured(tmp_path / "run")
    assert last["loss"] < 0.9 * first["loss"]
    assert last["target_entropy"] == pytest.approx(first["target_entropy"], rel=0.2)


def test_training_brings_student_and_teacher_together_and_does_not_collapse(config, tmp_path):
    """The loss itself need not fall: it contains the targets' entropy, which the centre raises."""
    Trainer(config("method.name=dino", *WIDE, "method.tau=0.99", "optim.lr=0.01", "train.epochs=4")).fit()
    first, *_, last = measured(tmp_path / "run")
    assert 0.01 < last["kl"] < 0.8 * first["kl"]
    assert last["feature_std"] > 0.05


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_frozen_prototypes_keep_their_directions_under_weight_decay(config, optimizer):
    settings = (f"optim.name={optimizer}", "optim.lr=0.1", "optim.weight_decay=0.1", "optim.warmup_epochs=0")
    trainer = Trainer(config(*SMALL, *settings))
    step = trainer.train_step
    prototypes = step.method.student.projector.prototypes.weight
    before, batch = prototypes.detach().clone(), first_batch(trainer)
    for epoch in (0, 0, 1):
        step.set_schedule(epoch=epoch, lr=0.1, probe_lr=0.1, tau=0.9)
        step(batch)
        moved = 1 - F.cosine_similarity(prototypes.detach(), before).min().item()
        assert moved < 1e-6 if epoch == 0 else moved > 1e-4


def test_a_killed_run_ends_with_the_same_weights_and_centre_bit_for_bit(config, tmp_path):
    centres = [run.train_step.method.centre for run in assert_a_killed_run_ends_the_same(config, tmp_path, *SMALL)]
    assert centres[0].abs().sum() > 0
    assert torch.equal(*centres)


def test_a_step_that_is_not_finite_leaves_the_centre_as_it_was(config):
    trainer = Trainer(config(*SMALL))
    step, batch = trainer.train_step, first_batch(trainer)
    step.set_schedule(epoch=0, lr=0.01, probe_lr=0.1, tau=0.9)
    step(batch)
    before = everything(trainer)
    step.set_views(lambda pixels, size, index, epoch: Views(torch.full((2 * len(index), 3, 8, 8), float("nan"))))
    step(batch)
    assert step.watch.read()[0] == 1
    assert step.method.centre.isfinite().all() and step.method.centre.abs().sum() > 0
    for a, b in zip(before, everything(trainer), strict=True):
        assert torch.equal(a, b) or not a.is_floating_point()  # BatchNorm's counter of calls, which is never read


@pytest.mark.ddp
def test_twenty_steps_of_two_processes_are_those_of_one(config, processes, tmp_path):
    common = (*SMALL, "optim.name=sgd", "optim.lr=0.05", "data.limit=720", "data.batch_size=36", "train.epochs=1")
    common += ("train.log_every=1", "optim.warmup_epochs=0", "method.tau=0.9")
    runs = {n: config(*common, f"run.dir={tmp_path / f'on-{n}'}") for n in (1, 2)}
    single = Trainer(runs[1])
    single.fit()

    def fit(world):
        trainer = Trainer(runs[2], world=world)
        trainer.fit()
        return trainer.train_step.method.centre.tolist()

    centres = processes(2, fit)
    assert centres[0] == centres[1] == pytest.approx(single.train_step.method.centre.tolist(), abs=1e-4)
    one, two = (losses(tmp_path / f"on-{n}") for n in (1, 2))
    assert list(one) == list(range(1, 21)) and two == pytest.approx(one, rel=1e-3)


def test_the_step_compiles_as_one_graph_and_equals_the_eager_step(config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    trainers = [Trainer(config(*SMALL, f"run.dir={tmp_path / name}")) for name in "ab"]
    batch = first_batch(trainers[0])
    steps = [trainer.train_step for trainer in trainers]
    assert compile_step(steps[0], batch) is True
    assert steps[0].method.centre.abs().sum() == 0  # compiling trains nothing
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in steps:
            for epoch in (0, 1):
                step.set_schedule(epoch=epoch, lr=1e-3, probe_lr=0.1, tau=0.9)
                step(batch)
    compiled, eager = (step.metrics.read() for step in steps)
    assert compiled == pytest.approx(eager, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(steps[0].method.centre, steps[1].method.centre, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("override", "owner"), [("method.temperature=0.1", "vssl or moco_v3"), ("method.variance_weight=1", "vicreg")]
)
def test_another_methods_keys_are_refused(config, override, owner):
    key = override.split("=")[0]
    with pytest.raises(UserError, match=f"{key} is an option of method.name={owner}, not of dino"):
        config(*SMALL, override)


@pytest.mark.parametrize("name", ["demo", "cifar10_fast", "cifar100_fast", "in100_fast", "folder"])
def test_every_null_is_filled_in(name):
    resolved = resolve(load_config(f"configs/{name}.yaml", ["method.name=dino", "optim.name=null", "optim.lr=null"]))
    assert None not in vars(resolved.method).values()
    assert (resolved.optim.name, resolved.optim.lr, resolved.method.tau) == ("lars", 0.3, 0.9995)
