"""What people train with, around a compiled loop."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fusedrnn
from fusedrnn.feedback import sequence

from .test_differentiated import EXECUTORS, B, D, H, T

LENGTHS = torch.tensor([6, 2, 0, 3])


class Reader(nn.Module):
    """The outputs of a loop over a sequence ``[T, B, D]``, a linear layer behind them."""

    def __init__(self, backend):
        super().__init__()
        torch.manual_seed(1)
        self.cell, self.head, self.backend = fusedrnn.LSTMCell(D, H), nn.Linear(H, 2), backend

    def forward(self, x):
        zeros = x.new_zeros(x.shape[1], H)
        emits, _, _ = fusedrnn.raw_rnn(self.cell, sequence(x, LENGTHS[: x.shape[1]], (zeros, zeros)), backend=self.backend)
        return self.head(emits.stack())


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.fixture
def x():
    return torch.randn(T, B, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_distributed_data_parallel(executor, x, one_process):
    model = Reader(executor)
    wanted = gradients(model, x)
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # the first backward lays out the buckets
        for found, grad in zip(gradients(wrapped, x), wanted, strict=True):
            torch.testing.assert_close(found, grad)


def shard(rank, store, x, results):
    """One of two processes, each with half of the rows."""
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    model = DistributedDataParallel(Reader("native"))
    found = gradients(model, x[:, :2])  # rows of the same lengths, so that both take as many steps
    results[rank] = [grad.numpy() for grad in found]
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_mean_of_their_gradients(tmp_path, x):
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        inputs = [x, x + 1]
        workers = [context.Process(target=shard, args=(rank, str(tmp_path / "store"), inputs[rank], results)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(300)
            assert worker.exitcode == 0
        found = [[torch.from_numpy(grad) for grad in results[rank]] for rank in range(2)]
    alone = [gradients(Reader("reference"), one[:, :2]) for one in inputs]
    for one, other, *both in zip(*found, *alone, strict=True):
        torch.testing.assert_close(one, sum(both) / 2, rtol=1e-4, atol=1e-5)
        assert torch.equal(one, other)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("overflows", [False, True])
def test_grad_scaler(executor, overflows, x):
    model, scaler = Reader(executor), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    wanted = gradients(Reader("reference"), x)
    optimiser.zero_grad()
    loss = model(x).square().sum()
    scaler.scale(loss * torch.inf if overflows else loss).backward()
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == (512.0 if overflows else 1024.0)
    for parameter, old, grad in zip(model.parameters(), before, wanted, strict=True):
        torch.testing.assert_close(parameter.detach(), old if overflows else old - 0.1 * grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_deterministic_algorithms(executor, x):
    model = Reader(executor)
    torch.use_deterministic_algorithms(True)
    try:
        one, other = gradients(model, x), gradients(model, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo hides it, by means that pytest's filter undoes
@pytest.mark.parametrize("executor", ["native", "auto"])
def test_a_compiled_model_around_it(executor, x):
    model = Reader(executor)
    wanted = gradients(Reader("reference"), x)
    compiled = torch.compile(model, backend="aot_eager")
    for found, grad in zip(gradients(compiled, x), wanted, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-5)


def test_func_grad(x, monkeypatch):
    """`reference` takes part in torch.func transforms; "auto" lets it, and says why."""
    monkeypatch.setenv("FUSEDRNN_BACKEND", "auto")
    model = Reader("auto")

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    before = sum(fusedrnn.fallbacks().values())
    found = torch.func.grad(loss)({name: parameter.detach() for name, parameter in model.named_parameters()})
    assert sum(fusedrnn.fallbacks().values()) > before
    assert any("torch.func transform" in reason for reason in fusedrnn.fallbacks())
    for grad, wanted in zip(found.values(), gradients(Reader("reference"), x), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_func_grad_of_a_named_executor(executor, x):
    model = Reader(executor)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with pytest.raises(fusedrnn.PlanError, match=r"torch\.func transform"):
        torch.func.grad(lambda given: torch.func.functional_call(model, given, (x,)).sum())(parameters)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_gradients_accumulate_and_are_clipped(executor, x):
    model, plain = Reader(executor), Reader("reference")
    for one in (model, plain):
        for part in (x[:, :2], x[:, :2] * 2):
            one(part).square().sum().backward()
        nn.utils.clip_grad_norm_(one.parameters(), 0.5)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
