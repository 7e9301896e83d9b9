"""Which calls of raw_rnn share a program: keys that match and keys that do not, side effects, and the tensors of a later call."""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import logging
import math
import random
import sys
import threading
import time
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType, ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedrnn
from fusedrnn import cells, feedback
from fusedrnn.capture.closure import Binder, Snapshot, walk
from fusedrnn.tensor_array import EmitArray, TensorArray

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch.compile imports it

SCALE = 2
RNG = random.Random(0)
LOG = logging.getLogger("fusedrnn.tests")
STATE = {"x": [0, 1, 2, random.Random(1)]}
COUNT = 0
TABLE = [1, 2]
Pair = namedtuple("Pair", "h c")


class Mode(Enum):
    SUM = 1
    MEAN = 2


def cell_of(size=3):
    return nn.GRUCell(size, 4)


CELL = nn.GRUCell(3, 4)


def helper(x):
    return x * SCALE


def other_helper(x):
    return x + SCALE


def closing(value):
    """A loop_fn that closes over one value."""

    def loop_fn(time, output, state, loop_state):
        return value

    return loop_fn


def default(value):
    def loop_fn(time, output, state, loop_state, extra=value):
        return extra

    return loop_fn


def keyword(value):
    def loop_fn(time, output, state, loop_state, *, extra=value):
        return extra

    return loop_fn


def scaled(x):
    def loop_fn(time, output, state, loop_state):
        return helper(x) * SCALE

    return loop_fn


class Cell:
    """A foreign cell with plain attributes."""

    BIAS = 1.0
    output_size = 4
    state_size = 4

    def __init__(self, weight, scale=1, unused=None):
        self.weight, self.scale, self.unused = weight, scale, unused

    def __call__(self, inputs, state):
        return self.step(inputs) * self.scale + self.BIAS, state

    def step(self, inputs):
        return helper(inputs @ self.weight)

    def report(self):
        print(self.unused, RNG)

    @property
    def size(self):
        raise AssertionError("a property was read")


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a

    def __call__(self):
        return self.a, self.b


@dataclass
class Config:
    size: int
    weight: torch.Tensor


class Model(nn.Module):
    def __init__(self, hidden=4, calls=0):
        super().__init__()
        self.layer = nn.Linear(3, hidden)
        self.other = nn.Linear(2, 2)
        self.hidden, self.calls, self.rng = hidden, calls, RNG
        self.register_buffer("mask", torch.ones(3))

    def forward(self, x):
        return self.layer(x)[:, : self.hidden] * self.mask

    def loop_fn(self, time, output, state, loop_state):
        return self(output)


class Hostile:
    """Whatever it is asked is an error."""

    value = 3

    def __getattr__(self, name):
        raise AssertionError(name)

    def __eq__(self, other):
        raise AssertionError("==")

    def __hash__(self):
        raise AssertionError("hash")

    def __len__(self):
        raise AssertionError("len")

    def __bool__(self):
        raise AssertionError("bool")

    def __iter__(self):
        raise AssertionError("iter")


class Registry(dict):
    def __getitem__(self, key):
        raise AssertionError("[]")

    def __iter__(self):
        raise AssertionError("iter")


def tensors(*sizes):
    return [torch.zeros(size) for size in sizes]


def key(loop_fn, cell=CELL):
    found = walk(cell, loop_fn)
    assert found.unknown is None, found.unknown
    return found.key


class Bound:
    """A binder of the cell and the loop_fn that it was made from. What a binder that owns nothing finds is the same, or nothing."""

    def __init__(self, cell, loop_fn):
        found = walk(cell, loop_fn)
        self.roots = cell, loop_fn
        self.own, self.lasting = (Binder(found, owned=owned) for owned in (True, False))
        self.key = found.key

    def __call__(self):
        found, other = self.own(*self.roots), self.lasting(*self.roots)
        assert other is None or (found is not None and list(map(id, other)) == list(map(id, found)))
        return found


def aliased(same):
    a, b = tensors(2, 2)
    return closing((a, a if same else b))


def local_cell(weight):
    class Local:
        output_size = state_size = 4
        bias = 1

        def __call__(self, inputs, state):
            return inputs @ weight * self.bias, state

    return Local()


def local_dataclass(size):
    @dataclass
    class Local:
        size: int

    return Local(size)


def parametrized():
    return torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))


def hooked(hook):
    module = nn.Linear(2, 2)
    if hook is not None:
        module.register_forward_hook(hook)
    return module


def recursive(n):
    def loop_fn(*_):
        return loop_fn if n else None

    return loop_fn


def cyclic():
    items = [1]
    items.append(items)
    return items


def hook_a(module, args, output):
    return output


def hook_b(module, args, output):
    return output * 2


def token_loop(rows=2, end=1, max_steps=None, emit="tokens"):
    embedding, project = nn.Embedding(5, 3), nn.Linear(4, 5)
    return feedback.greedy(embedding, project, 0, end, torch.zeros(rows, 4), max_steps, emit=emit)


def bound_attention(rows=2, lengths=True, size=None):
    wrapper = cells.AttentionWrapper(nn.GRUCell(3 + (size or 6), 4), cells.BahdanauAttention(4, 6, 5), attention_size=size)
    return wrapper.bind(torch.zeros(rows, 3, 6), torch.ones(rows, dtype=torch.int64) if lengths else None)


def written(count, dtype=torch.float32):
    array = TensorArray(dtype)
    for i in range(count):
        array = array.write(i, torch.zeros(2, dtype=dtype))
    return array


def emitted(count):
    return EmitArray(
        lambda: tensors(*[2] * count), lambda: None, lambda: None, dtype=torch.float32, element_shape=(2,), device=torch.device("cpu")
    )


def compiled(value):
    return torch.compile(closing(value))


# Two makers whose keys are the same.
HITS = {
    "fresh tensors": lambda i: closing(torch.rand(2 + i, 3)),
    "strides": lambda i: closing(torch.rand(3, 3).T if i else torch.rand(3, 3)),
    "parameters": lambda i: closing(nn.Parameter(torch.rand(2 + i))),
    "0-d tensors": lambda i: closing(torch.tensor(i)),
    "tuples": lambda i: closing((torch.rand(2), [torch.rand(3)], {"a": torch.rand(1)})),
    "named tuples": lambda i: closing(Pair(torch.rand(2), 1)),
    "namespaces": lambda i: closing(SimpleNamespace(w=torch.rand(2), n=3)),
    "big ints": lambda i: closing(int("123456")),
    "floats": lambda i: closing([float("nan"), -0.0, 1e300]),
    "strings": lambda i: closing("".join(["a", "b"])),
    "numpy content": lambda i: closing(np.arange(3)),
    "numpy scalars": lambda i: closing(np.float32(3)),
    "defaults": lambda i: default((torch.rand(2), 3)),
    "keyword defaults": lambda i: keyword({"a": torch.rand(2), "b": 3}),
    "partial": lambda i: functools.partial(closing(1), extra=torch.rand(2)),
    "globals": lambda i: scaled(torch.rand(2)),
    "nested functions": lambda i: closing(closing(closing(torch.rand(2)))),
    "lambdas": lambda i: closing(lambda x: x),
    "recursion": lambda i: recursive(1),
    "cycles": lambda i: closing(cyclic()),
    "modules": lambda i: closing(nn.Linear(3, 4)),
    "modules of other sizes, unseen": lambda i: closing(nn.ReLU()),
    "containers of modules": lambda i: closing(nn.ModuleList([nn.Linear(2, 2), nn.GRUCell(2, 2)])),
    "whole-sequence modules": lambda i: closing(nn.LSTM(2, 3, num_layers=2)),
    "batch norm": lambda i: closing(nn.BatchNorm1d(3)),
    "a user's module": lambda i: closing(Model()),
    "an attribute that no code names": lambda i: closing(Model(calls=i)),
    "a method": lambda i: Model().loop_fn,
    "a foreign cell's unused attribute": lambda i: closing(Cell(torch.rand(2), unused=object() if i else RNG)),
    "a local class": lambda i: closing(local_cell(torch.rand(2))),
    "a local dataclass": lambda i: closing(local_dataclass(3)),
    "a parametrized module": lambda i: closing(parametrized()),
    "a hooked module": lambda i: closing(hooked(hook_a)),
    "slots": lambda i: closing(Slotted(torch.rand(2))),
    "dataclasses": lambda i: closing(Config(3, torch.rand(2))),
    "deques": lambda i: closing(deque([torch.rand(2), 1], maxlen=3)),
    "sets": lambda i: closing({1, 2, 3}),
    "mapping proxies": lambda i: closing(MappingProxyType({"a": torch.rand(2)})),
    "enums": lambda i: closing(Mode.SUM),
    "token loops": lambda i: token_loop(rows=2 + i),
    "sampling": lambda i: feedback.sample(nn.Embedding(5, 3), nn.Linear(4, 5), 0, 1, torch.zeros(2 + i, 4), temperature=0.5, seed=3),
    "forced prefixes": lambda i: feedback.forced_prefix(token_loop(max_steps=3), torch.zeros(2, 2, dtype=torch.int64)),
    "sequences": lambda i: feedback.sequence(torch.rand(3, 2, 3), torch.tensor([1, 2]), torch.rand(2, 4)),
    "fixed steps": lambda i: feedback.fixed_steps(closing(torch.rand(2)), 3),
    "arrays": lambda i: closing(written(3)),
    "unstacked arrays": lambda i: closing(TensorArray().unstack(torch.rand(3, 2))),
    "emitted arrays": lambda i: closing(emitted(2)),
    "compiled functions": lambda i: compiled(torch.rand(2)),
    "bound built-ins": lambda i: closing([torch.rand(2)].append),
    "hostile objects": lambda i: closing(Hostile()),
    "subclasses of dict": lambda i: closing(Registry(a=torch.rand(2))),
    "wrapped torch functions": lambda i: closing(torch.func.vmap(closing(torch.rand(2)))),
    "torch functions": lambda i: closing([torch.tanh, F.relu, torch.float32, torch.nn.Linear, math.sqrt, np.add]),
}

# Makers that take False or True, whose keys differ.
MISSES = {
    "int": lambda i: closing(4 if i else 3),
    "bool and int": lambda i: closing(True if i else 1),
    "float and int": lambda i: closing(1.0 if i else 1),
    "signs of zero": lambda i: closing(-0.0 if i else 0.0),
    "None": lambda i: closing(None if i else 0),
    "str": lambda i: closing("b" if i else "a"),
    "dtype": lambda i: closing(torch.float64 if i else torch.float32),
    "size": lambda i: closing(torch.Size([2]) if i else (2,)),
    "range": lambda i: closing(range(3, 3) if i else range(0)),
    "slice": lambda i: closing(slice(2) if i else slice(3)),
    "list content": lambda i: closing([1, 2, 3 + i]),
    "list length": lambda i: closing([torch.rand(1)] * (2 + i)),
    "list and tuple": lambda i: closing([1] if i else (1,)),
    "dict value": lambda i: closing({"a": 1 + i}),
    "dict order": lambda i: closing({"b": 1, "a": 2} if i else {"a": 2, "b": 1}),
    "dict key": lambda i: closing({"b" if i else "a": 1}),
    "key types": lambda i: closing({True if i else 1: 1}),
    "dict types": lambda i: closing(OrderedDict(a=1) if i else {"a": 1}),
    "factories": lambda i: closing(defaultdict(list if i else dict)),
    "set content": lambda i: closing({1, 2 + i}),
    "enum": lambda i: closing(Mode.MEAN if i else Mode.SUM),
    "numpy content": lambda i: closing(np.arange(3) + i),
    "numpy dtype": lambda i: closing(np.zeros(2, np.float32 if i else np.int32)),
    "tensor dtype": lambda i: closing(torch.zeros(2, dtype=torch.float64 if i else torch.float32)),
    "tensor rank": lambda i: closing(torch.zeros((2,) * (1 + i))),
    "tensor device": lambda i: closing(torch.zeros(2, device="meta" if i else "cpu")),
    "requires_grad": lambda i: closing(torch.zeros(2, requires_grad=bool(i))),
    "layout": lambda i: closing(torch.eye(2).to_sparse() if i else torch.eye(2)),
    "parameter": lambda i: closing(nn.Parameter(torch.zeros(2)) if i else torch.zeros(2, requires_grad=True)),
    "fake tensors": lambda i: closing(torch._subclasses.FakeTensorMode().from_tensor(torch.zeros(2)) if i else torch.zeros(2)),
    "aliasing": aliased,
    "shared lists": lambda i: (lambda items: closing((items, items if i else [torch.zeros(1)])))([torch.zeros(1)]),
    "default": lambda i: default(3 + i),
    "keyword default": lambda i: keyword(3 + i),
    "partial": lambda i: functools.partial(closing(1), i),
    "code": lambda i: closing((lambda x: x + 1) if i else (lambda x: x)),
    "training": lambda i: closing(nn.Linear(2, 2).train(bool(i))),
    "module configuration": lambda i: closing(nn.GRUCell(2, 4 + i)),
    "hidden size": lambda i: closing(Model(hidden=4 + i)),
    "bias": lambda i: closing(nn.Linear(2, 2, bias=bool(i))),
    "module types": lambda i: closing(nn.Tanh() if i else nn.ReLU()),
    "module dtype": lambda i: closing(nn.Linear(2, 2).to(torch.float64 if i else torch.float32)),
    "frozen": lambda i: closing(nn.Linear(2, 2).requires_grad_(bool(i))),
    "hooks": lambda i: closing(hooked(hook_a if i else None)),
    "other hooks": lambda i: closing(hooked(hook_a if i else hook_b)),
    "attribute of a foreign cell": lambda i: closing(Cell(torch.zeros(2), scale=1 + i)),
    "slots": lambda i: closing(Slotted(1 + i)),
    "dataclass fields": lambda i: closing(Config(1 + i, torch.zeros(2))),
    "local dataclass": lambda i: closing(local_dataclass(3 + i)),
    "deque length": lambda i: closing(deque([1], maxlen=3 + i)),
    "token loop end": lambda i: token_loop(end=1 + i),
    "token loop bound": lambda i: token_loop(max_steps=5 + i),
    "token loop emit": lambda i: token_loop(emit="logits" if i else "tokens"),
    "array size": lambda i: closing(written(2 + i)),
    "array dtype": lambda i: closing(written(2, torch.float64 if i else torch.float32)),
    "array and emits": lambda i: closing(emitted(2) if i else written(2)),
    "empty cell": lambda i: closing(closing(1)) if i else recursive_empty(),
    "bound self": lambda i: closing([1 + i].append),
}


def recursive_empty():
    def loop_fn(*_):
        return late

    if False:
        late = 1
    return loop_fn


@pytest.mark.parametrize("name", HITS)
def test_hit(name):
    first, second = HITS[name](0), HITS[name](1)
    found = walk(CELL, second)
    assert key(first) == found.key
    assert hash(key(first)) == hash(found.key)
    assert found.impure is None


@pytest.mark.parametrize("name", MISSES)
def test_miss(name):
    first, second = MISSES[name](0), MISSES[name](1)
    assert key(first) != key(second)
    assert key(first) == key(first)


@pytest.mark.parametrize("name", HITS)
def test_binder_repeats_the_walk(name):
    loop_fn = HITS[name](0)
    bind = Bound(CELL, loop_fn)
    found = walk(CELL, loop_fn)
    for _ in range(2):
        assert [id(tensor) for tensor in bind()] == [id(tensor) for tensor in found.tensors]
    assert bind.key == found.key


@pytest.mark.parametrize("name", HITS)
def test_binder_follows_another_closure(name):
    """A binder made from one loop_fn finds in another of the same key what a walk finds there, or nothing."""
    first, second = HITS[name](0), HITS[name](1)
    for owned in (True, False):
        bound = Binder(walk(CELL, first), owned=owned)(CELL, second)
        assert bound is None or list(map(id, bound)) == list(map(id, walk(CELL, second).tensors))


@pytest.mark.parametrize("name", MISSES)
def test_binder_of_another_key(name):
    first, second = MISSES[name](0), MISSES[name](1)
    for loop_fn, other in ((first, second), (second, first)):
        for owned in (True, False):
            assert Binder(walk(CELL, loop_fn), owned=owned)(CELL, other) is None


# Changes in place: (what loop_fn closes over, the change, whether the key stays).
def replace_weight(module):
    module.weight = nn.Parameter(torch.rand(2, 2))


def double(module):
    module.weight = nn.Parameter(module.weight.detach().double())


def alias(namespace):
    namespace.a = namespace.b


def entry(name, value):
    def change(container):
        container[name] = value

    return change


def attribute(name, value):
    return lambda owner: setattr(owner, name, value)


CHANGES = {
    "in-place update": (lambda: nn.Linear(2, 2), lambda m: torch.nn.init.ones_(m.weight), True),
    "another parameter": (lambda: nn.Linear(2, 2), replace_weight, True),
    "another dtype": (lambda: nn.Linear(2, 2), double, False),
    "to another dtype in place": (lambda: nn.Linear(2, 2), lambda m: m.double(), False),
    "eval": (lambda: nn.Linear(2, 2), lambda m: m.eval(), False),
    "frozen": (lambda: nn.Linear(2, 2), lambda m: m.requires_grad_(False), False),
    "parametrized": (lambda: nn.Linear(2, 2), lambda m: torch.nn.utils.parametrizations.weight_norm(m), False),
    "a hook": (lambda: nn.Linear(2, 2), lambda m: m.register_forward_hook(hook_a), False),
    "a pre-hook on one within": (lambda: nn.Sequential(nn.Linear(2, 2)), lambda m: m[0].register_forward_pre_hook(hook_a), False),
    "a buffer": (lambda: Model(), attribute("mask", torch.rand(3)), True),
    "a named attribute": (lambda: Model(), attribute("hidden", 5), False),
    "an attribute that no code names": (lambda: Model(), attribute("calls", 5), True),
    "a new attribute that no code names": (lambda: Model(), attribute("news", 5), True),
    "a new attribute that code names": (lambda: Cell(torch.rand(2)), attribute("BIAS", 5), False),
    "a replaced method": (lambda: Cell(torch.rand(2)), attribute("step", hook_a), False),
    "another class": (lambda: Cell(torch.rand(2)), attribute("__class__", Config), False),
    "a removed module": (lambda: nn.Sequential(nn.Tanh(), nn.Tanh()), lambda m: m.pop(0), False),
    "a namespace's tensor": (lambda: SimpleNamespace(a=torch.rand(2), b=torch.rand(2)), attribute("a", torch.rand(3)), True),
    "a namespace's number": (lambda: SimpleNamespace(a=1000, b=torch.rand(2)), attribute("a", int("1000")), True),
    "a namespace's other number": (lambda: SimpleNamespace(a=1000, b=torch.rand(2)), attribute("a", 1001), False),
    "a namespace's tuple of tensors": (lambda: SimpleNamespace(a=(torch.rand(2),)), attribute("a", (torch.rand(3),)), True),
    "a namespace's new entry": (lambda: SimpleNamespace(a=1), attribute("c", 1), False),
    "aliasing": (lambda: SimpleNamespace(a=torch.rand(2), b=torch.rand(2)), alias, False),
    "append": (lambda: [torch.rand(2)], lambda items: items.append(torch.rand(2)), False),
    "append a number": (lambda: [1], lambda items: items.append(2), False),
    "replace in a list": (lambda: [torch.rand(2), 1], entry(0, torch.rand(3)), True),
    "replace a number in a list": (lambda: [torch.rand(2), 1], entry(1, 2), False),
    "the same number": (lambda: [1.5, 2.5], entry(1, float("2.5")), True),
    "int becomes bool": (lambda: [1, 2], entry(0, True), False),
    "a dict's tensor": (lambda: {"a": torch.rand(2)}, entry("a", torch.rand(1)), True),
    "a dict's new key": (lambda: {"a": torch.rand(2)}, entry("b", torch.rand(1)), False),
    "a dict's order": (lambda: {"a": 1, "b": 2}, lambda d: d.update(a=d.pop("a")), False),
    "a set": (lambda: {1, 2}, lambda s: s.add(3), False),
    "numpy in place": (lambda: np.zeros(3), lambda a: a.fill(1), False),
    "an array's element": (lambda: written(2), lambda a: a._elements.__setitem__(0, torch.rand(2)), True),
    "an array that was written to": (lambda: written(2), lambda a: a.write(2, torch.rand(2)), True),
    "a factory": (lambda: defaultdict(list), attribute("default_factory", dict), False),
    "a code object": (lambda: closing(1), lambda f: setattr(f, "__code__", closing_twice(1).__code__), False),
    "defaults": (lambda: default(1), attribute("__defaults__", (2,)), False),
    "keyword defaults": (lambda: keyword(1), lambda f: f.__kwdefaults__.update(extra=2), False),
    "a function's attribute": (lambda: closing(1), attribute("scale", 2), False),
    "slots": (lambda: Slotted(1), attribute("b", 2), False),
}  # fmt: skip


def closing_twice(value):
    def loop_fn(*_):
        return value, value

    return loop_fn


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_in_place(name):
    """The binder sees what a walk sees."""
    make, change, stays = CHANGES[name]
    held = make()
    loop_fn = closing(held)
    before, bind = key(loop_fn), Bound(CELL, loop_fn)
    change(held)
    after = walk(CELL, loop_fn)
    assert (after.key == before) is stays
    bound = bind()
    assert (bound is not None) is stays
    if stays:
        assert [id(tensor) for tensor in bound] == [id(tensor) for tensor in after.tensors]


@pytest.mark.parametrize(
    ("name", "value"),
    [("SCALE", 3), ("helper", other_helper), ("helper", functools.partial(other_helper)), ("len", 3), ("SCALE", torch.zeros(2))],
)
def test_globals_are_read_again(monkeypatch, name, value):
    def loop_fn(time, output, state, loop_state):
        return helper(output) * SCALE + len(state)

    before, bind = key(loop_fn), Bound(CELL, loop_fn)
    assert bind() is not None
    monkeypatch.setitem(globals(), name, value)
    assert key(loop_fn) != before
    assert bind() is None


def test_class_members_are_read_again(monkeypatch):
    loop_fn = closing(Cell(torch.rand(2)))
    for name, value in [("BIAS", 2.0), ("step", lambda self, x: x)]:
        before, bind = key(loop_fn), Bound(CELL, loop_fn)
        monkeypatch.setattr(Cell, name, value)
        assert key(loop_fn) != before
        assert bind() is None
    before = key(loop_fn)
    monkeypatch.setattr(Cell, "report", None)
    assert key(loop_fn) == before


def test_hooks_of_all_modules():
    loop_fn = closing(nn.Linear(2, 2))
    before, bind = key(loop_fn), Bound(CELL, loop_fn)
    handle = torch.nn.modules.module.register_module_forward_hook(hook_a)
    try:
        assert key(loop_fn) != before
        assert bind() is None
    finally:
        handle.remove()
    assert key(loop_fn) == before
    assert bind() is not None


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's package with constants, tensors and functions."""
    package = tmp_path / "fusedrnn_user_package"
    package.mkdir()
    (package / "__init__.py").write_text("from . import inner\nW = __import__('torch').zeros(2)\nN = 3\ndef double(x): return x * N\n")
    (package / "inner.py").write_text("DEPTH = 1\nUNUSED = open\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("fusedrnn_user_package")
    for name in [name for name in sys.modules if name.startswith("fusedrnn_user_package")]:
        del sys.modules[name]


def test_names_of_a_module(module, monkeypatch):
    monkeypatch.setitem(globals(), "user_module", module)

    def loop_fn(time, output, state, loop_state):
        return user_module.double(output) @ user_module.W + user_module.inner.DEPTH  # noqa: F821

    def importing(time, output, state, loop_state):
        from fusedrnn_user_package.inner import DEPTH

        return DEPTH

    found = walk(CELL, loop_fn)
    assert any(tensor is module.W for tensor in found.tensors)
    for owner, name, value in [(module, "N", 4), (module.inner, "DEPTH", 2), (module, "double", helper)]:
        before, bind = key(loop_fn), Bound(CELL, loop_fn)
        assert bind() is not None
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert key(loop_fn) != before
            assert bind() is None
    before, imported, bind = key(loop_fn), key(importing), Bound(CELL, loop_fn)
    monkeypatch.setattr(module, "W", torch.ones(3))
    monkeypatch.setattr(module.inner, "UNUSED", 5)
    assert key(loop_fn) == before
    assert any(tensor is module.W for tensor in bind())
    monkeypatch.setattr(module.inner, "DEPTH", 7)
    assert key(importing) != imported


def g2p_decode(model, rows):
    """The cell and the loop_fn of the decoder."""
    from fusedrnn.models import g2p

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        result = SimpleNamespace(emit_ta=SimpleNamespace(stack=list))
        patch.setattr(g2p, "raw_rnn", lambda cell, loop_fn, **_: (seen.append((cell, loop_fn)), result)[1])
        model.decode(torch.zeros(rows, 8))
    return seen[0]


def test_g2p(monkeypatch):
    from fusedrnn.models.g2p import G2P, checkpoint

    model = G2P(8, 8)
    found = walk(*g2p_decode(model, 2))
    assert (found.unknown, found.impure) == (None, None)
    assert walk(*g2p_decode(G2P(8, 8), 3)).key == found.key
    assert walk(*g2p_decode(G2P(8, 8).eval(), 3)).key != found.key
    bind = Bound(*g2p_decode(model, 2))
    assert bind() is not None
    monkeypatch.setattr(checkpoint, "MAX_STEPS", 5)
    assert walk(*g2p_decode(model, 2)).key != found.key  # a loop_fn has the number of when it was made
    assert bind() is not None


def wrapped_cells():
    lstm = functools.partial(cells.LSTMCell, 3, 4)
    return {
        "lstm": lstm,
        "lstm with everything": lambda **kw: lstm(use_peepholes=True, num_proj=2, cell_clip=1.0, layer_norm=True, **kw),
        "gru": lambda **kw: cells.GRUCell(3, 4, **kw),
        "basic": lambda **kw: cells.BasicRNNCell(3, 4, **kw),
        "stack": lambda **kw: cells.MultiRNNCell([lstm(**kw), cells.GRUCell(4, 4, **kw)]),
        "dropout": lambda **kw: cells.DropoutWrapper(lstm(**kw), input_dropout=0.1, state_dropout=0.5, seed=3),
        "zoneout": lambda **kw: cells.ZoneoutWrapper(lstm(**kw), (0.1, 0.5)),
        "residual": lambda **kw: cells.ResidualWrapper(cells.GRUCell(4, 4, **kw)),
        "torch": lambda **kw: nn.LSTMCell(3, 4, **kw),
        "attention": lambda **kw: bound_attention(),
        "attention with a layer": lambda **kw: bound_attention(size=5),
    }


@pytest.mark.parametrize("name", wrapped_cells())
def test_cells(name):
    make, loop_fn = wrapped_cells()[name], closing(1)
    cell = make()
    before, bind = key(loop_fn, cell), Bound(cell, loop_fn)
    assert key(loop_fn, make()) == before
    assert {id(t) for t in cell.parameters()} <= {id(t) for t in bind()}
    if "attention" not in name:
        assert key(loop_fn, make(dtype=torch.float64)) != before
    assert key(loop_fn, make().eval()) != before
    cell.double()
    assert bind() is None


def test_attention_binds_to_the_batch():
    loop_fn = closing(1)
    assert key(loop_fn, bound_attention(2)) == key(loop_fn, bound_attention(3))
    assert key(loop_fn, bound_attention()) != key(loop_fn, bound_attention(lengths=False))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: closing(random.Random(0)), "loop_fn closes over `value` (random.Random)"),
        (lambda: closing(torch.Generator()), "loop_fn closes over `value` (torch._C.Generator)"),
        (lambda: closing(np.random.default_rng(0)), "loop_fn closes over `value` (numpy.random._generator.Generator)"),
        (lambda: closing({"x": [1, threading.Lock()]}), "loop_fn closes over `value['x'][1]` (_thread.lock)"),
        (lambda: closing(iter([1])), "loop_fn closes over `value` (list_iterator)"),
        (lambda: closing(i for i in [1]), "loop_fn closes over `value` (generator)"),
        (lambda: closing(np.zeros(200_000)), "loop_fn closes over `value` (numpy.ndarray)"),
        (lambda: closing(np.array([object()])), "loop_fn closes over `value` (numpy.ndarray)"),
        (lambda: closing(functools.lru_cache(helper)), "loop_fn closes over `value` (functools._lru_cache_wrapper)"),
        (lambda: closing(weakref.ref(Cell)), "loop_fn closes over `value` (weakref.ReferenceType)"),
        (lambda: closing({torch.zeros(1): 1}), "loop_fn closes over `value` (dict) has a tensor as a key"),
        (lambda: closing(Config(threading.local(), torch.zeros(1))), "loop_fn closes over `value.size` (_thread._local)"),
        (lambda: default(RNG), "loop_fn has the default `extra` (random.Random)"),
        (lambda: Drawing().loop_fn, "`self.stream` (random.Random)"),
    ],
)  # fmt: skip
def test_unknown(make, text):
    loop_fn = make()
    found = walk(CELL, loop_fn)
    assert found.unknown.endswith(text)
    assert found.key != walk(CELL, loop_fn).key
    assert Bound(CELL, loop_fn)() is None


class Drawing:
    def __init__(self):
        self.stream = random.Random(0)

    def loop_fn(self, time, output, state, loop_state):
        return self.stream.random()


def test_unknown_elsewhere():
    def loop_fn(time, output, state, loop_state):
        return STATE["x"][3]

    def evaluated(time, output, state, loop_state):
        return eval("SCALE")

    assert walk(CELL, loop_fn).unknown == "loop_fn uses global `STATE['x'][3]` (random.Random)"
    assert "uses eval" in walk(CELL, evaluated).unknown
    cell = nn.GRUCell(2, 2)
    cell.stream = RNG
    assert walk(cell, closing(1)).unknown == "cell holds `cell.stream` (random.Random)"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in walk(CELL, closing(deep)).unknown
    while deep:  # freed bit by bit
        deep = deep[0]


def printing(time, output, state, loop_state):
    print(output)


def timing(output):
    start = time.perf_counter()
    return output * start


def logging_fn(time, output, state, loop_state):
    LOG.info("step")


def drawing(time, output, state, loop_state):
    return np.random.rand(3) + random.random()  # noqa: NPY002


def drawing_by_name(time, output, state, loop_state):
    return gauss(0, 1)


gauss = random.gauss


def reading(time, output, state, loop_state):
    import os

    return os.environ["HOME"]


def indirect(time, output, state, loop_state):
    return helping(output)


def helping(x):
    return timing(x)


@pytest.mark.parametrize(
    ("loop_fn", "text"),
    [
        (printing, "loop_fn calls print"),
        (timing, "loop_fn calls time.perf_counter"),
        (logging_fn, "loop_fn calls LOG.info"),
        (drawing, "loop_fn calls numpy.random.rand"),
        (drawing_by_name, "loop_fn calls random.gauss"),
        (reading, "loop_fn reads os.environ"),
        (indirect, "timing calls time.perf_counter"),
    ],
)
def test_impure(loop_fn, text):
    found = walk(CELL, loop_fn)
    assert found.unknown is None
    code = (timing if loop_fn is indirect else loop_fn).__code__
    file, _, line = found.location.rpartition(":")
    assert file == code.co_filename
    assert int(line) - code.co_firstlineno in (1, 2, 3)
    assert found.impure == text


def after_a_helper(make):
    """A loop_fn that names a function of the user's before it uses what is impure."""

    def loop_fn(time, output, state, loop_state):
        return helper(output) + make()

    return loop_fn


def drawn_in_a_closure():
    import random as chance

    def loop_fn(time, output, state, loop_state):
        return helper(output) + chance.random()

    return loop_fn


def helper_then_module(time, output, state, loop_state):
    return helper(output) + random.random()


def stream_of(stream, use=next):
    def loop_fn(time, output, state, loop_state):
        return helper(output) + use(stream)

    return loop_fn


class Holder:
    def __init__(self, stream):
        self.stream = stream

    def loop_fn(self, time, output, state, loop_state):
        return next(self.stream)


@pytest.mark.parametrize(
    ("loop_fn", "text", "advice"),
    [
        (helper_then_module, "loop_fn calls random.random", "use fusedrnn.random or torch.rand"),
        (drawn_in_a_closure(), "loop_fn calls random.random", "use fusedrnn.random or torch.rand"),
        (after_a_helper(random.random), "loop_fn calls random.random", "use fusedrnn.random or torch.rand"),
        (after_a_helper(np.random.rand), "loop_fn calls numpy.random.rand", "use fusedrnn.random or torch.rand"),
        (after_a_helper(functools.partial(random.gauss, 0, 1)), "loop_fn calls random.gauss", "use fusedrnn.random or torch.rand"),
        (after_a_helper(time.time), "loop_fn calls time.time", "leave it out"),
        (after_a_helper(print), "loop_fn calls print", "leave it out"),
        (stream_of(random.Random(0)), "loop_fn draws from `stream` (random.Random)", "use fusedrnn.random or torch.rand"),
        (
            stream_of(np.random.default_rng(0)), "loop_fn draws from `stream` (numpy.random._generator.Generator)",
            "use fusedrnn.random or torch.rand",
        ),
        (stream_of(torch.Generator()), "loop_fn draws from `stream` (torch._C.Generator)", "use fusedrnn.random or torch.rand"),
        (stream_of(iter([1])), "loop_fn advances `stream` (list_iterator)", "put the elements into a tensor"),
        (stream_of(x for x in [1]), "loop_fn advances `stream` (generator)", "put the elements into a tensor"),
        (
            stream_of(iter(torch.utils.data.DataLoader([1]))),
            "loop_fn advances `stream` (torch.utils.data.dataloader._SingleProcessDataLoaderIter)", "put the elements into a tensor",
        ),
        (stream_of(itertools.count()), "loop_fn advances `stream` (itertools.count)", "put the elements into a tensor"),
        (stream_of([zip([1], [2], strict=False)]), "loop_fn advances `stream[0]` (zip)", "put the elements into a tensor"),
        (Holder(iter([1])).loop_fn, "loop_fn advances `self.stream` (list_iterator)", "put the elements into a tensor"),
    ],
)  # fmt: skip
def test_what_gives_something_else_each_time(loop_fn, text, advice):
    found = walk(CELL, loop_fn)
    assert found.impure == text
    assert found.advice.startswith(advice)


def test_a_stream_that_no_code_names_is_not_used():
    cell = nn.GRUCell(2, 2)
    cell.stream = random.Random(0)
    assert walk(cell, closing(1)).impure is None


def test_what_pytest_makes_of_an_assert_is_not_the_users():
    def loop_fn(time, output, state, loop_state):
        assert output is None, "text"
        assert "time" in state

    found = walk(CELL, loop_fn)
    assert (found.unknown, found.impure) == (None, None)


def test_pure():
    """What no code can reach is not impure, nor is anything of torch or fusedrnn."""
    for loop_fn in (closing(Cell(torch.rand(2))), token_loop(), closing(torch.nn.functional.dropout), scaled(1)):
        found = walk(cells.DropoutWrapper(nn.GRUCell(2, 2)), loop_fn)
        assert (found.impure, found.location, found.unknown) == (None, None, None)


# Side effects


def counting():
    count = 0

    def loop_fn():
        nonlocal count
        count += 1

    return loop_fn, lambda: count


def global_counting():
    global COUNT
    COUNT += 1


def appending(items):
    def loop_fn():
        items.append(torch.rand(2))

    return loop_fn, lambda: list(items)


def calling(owner, name="calls"):
    def loop_fn():
        setattr(owner, name, torch.rand(1))

    return loop_fn, lambda: dict(vars(owner))


def entering(entries, name, value):
    def loop_fn():
        entries[name] = value

    return loop_fn, lambda: list(entries.items()) if isinstance(entries, dict) else list(entries)


def doing(held, act, look):
    def loop_fn():
        act(held)

    return loop_fn, lambda: look(held)


def effect_of_method():
    drawing = SimpleNamespace()

    class Counter:
        calls = 0

        def loop_fn(self):
            self.calls += 1

    counter = Counter()
    counter.calls = 3
    del drawing
    return counter.loop_fn, lambda: vars(counter).copy()


EFFECTS = {
    "nonlocal": (counting, "loop_fn changes nonlocal `count`"),
    "global": (lambda: (global_counting, lambda: COUNT), "loop_fn changes global `COUNT`"),
    "list": (lambda: appending([1]), "loop_fn changes `items` (list)"),
    "global list": (lambda: (lambda: TABLE.append(3), lambda: list(TABLE)), "loop_fn changes `TABLE` (list)"),
    "attribute": (lambda: calling(Cell(torch.rand(2))), "loop_fn changes `owner.calls`"),
    "self": (effect_of_method, "loop_fn changes `self.calls`"),
    "module attribute": (lambda: calling(nn.Linear(2, 2)), "loop_fn changes `owner.calls`"),
    "namespace": (lambda: calling(SimpleNamespace(calls=1)), "loop_fn changes `owner.calls`"),
    "dict": (lambda: entering({"a": 1}, "a", 2), "loop_fn changes `entries` (dict)"),
    "new key": (lambda: entering(OrderedDict(a=1), "b", 2), "loop_fn changes `entries` (collections.OrderedDict)"),
    "item": (lambda: entering([1, 2], 1, 3), "loop_fn changes `entries` (list)"),
    "set": (lambda: doing({1, 2}, lambda s: s.add(3), set), "loop_fn changes `held` (set)"),
    "deque": (lambda: doing(deque([1, 2]), lambda d: d.append(3), list), "loop_fn changes `held` (collections.deque)"),
    "buffer": (lambda: doing(Model(), lambda m: setattr(m, "mask", torch.ones(1)), lambda m: m.mask), "loop_fn changes `held.mask`"),
    "slot": (lambda: doing(Slotted(1), lambda s: setattr(s, "a", 2), lambda s: s.a), "loop_fn changes `held.a`"),
    "class": (lambda: doing(Cell(1), lambda s: setattr(type(s), "BIAS", 2), lambda s: s.BIAS), "loop_fn changes `Cell.BIAS`"),
    "numpy": (lambda: doing(np.zeros(2), lambda a: a.fill(1), lambda a: a.tolist()), "loop_fn changes `held` (numpy.ndarray)"),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_side_effect(name):
    make, text = EFFECTS[name]
    loop_fn, look = make()
    before = look()
    found = walk(CELL, loop_fn)
    snapshot = Snapshot(found)
    assert snapshot.changes() == []
    loop_fn()
    assert [change.text for change in snapshot.changes()] == [text]
    snapshot.restore()
    assert snapshot.changes() == []
    assert str(look()) == str(before)
    assert walk(CELL, loop_fn).key == found.key


def test_no_side_effect():
    array, whole = written(2), TensorArray().unstack(torch.rand(2, 2))
    known = array._elements
    kept = [array, whole, 1]

    def loop_fn():
        array.write(2, torch.rand(2))
        whole.read(0)
        kept[0].stack()

    snapshot = Snapshot(walk(CELL, loop_fn))
    loop_fn()
    assert len(known) == 3
    assert snapshot.changes() == []
    snapshot.restore()
    assert (len(known), array._elements is known, array._whole, whole._elements) == (2, True, None, [])


def test_an_exception_can_be_undone():
    log, cell = [], nn.Linear(2, 2)

    def loop_fn():
        log.append(1)
        del cell.weight
        raise KeyError

    snapshot = Snapshot(walk(CELL, loop_fn))
    with pytest.raises(KeyError):
        loop_fn()
    snapshot.restore()
    assert log == []
    assert cell.weight.shape == (2, 2)
    assert list(cell._parameters) == ["weight", "bias"]


# Lifetimes


def test_nothing_is_kept_alive():
    model, weight = Model(), torch.rand(2)
    cell = Cell(weight)
    loop_fn = closing((model, cell, weight, [torch.rand(2)], TensorArray().unstack(torch.rand(2, 2))))
    kept = key(loop_fn, cell)
    watched = [weakref.ref(thing) for thing in (model, weight, cell, loop_fn, model.layer.weight)]
    del model, weight, cell, loop_fn
    gc.collect()
    assert [reference() for reference in watched] == [None] * 5
    assert hash(kept)


def test_a_binder_keeps_no_replaced_tensor():
    model = nn.Linear(2, 2)
    bind = Bound(CELL, closing(model))
    old = weakref.ref(model.weight)
    model.weight = nn.Parameter(torch.rand(2, 2))
    gc.collect()
    assert old() is None
    assert any(tensor is model.weight for tensor in bind())


def test_new_code_is_another_program():
    def made(text):
        scope = {}
        exec(compile(f"def loop_fn(*_):\n    return {text}", "<made>", "exec"), scope)
        return scope["loop_fn"]

    assert key(made("1")) == key(made("1"))
    assert key(made("1")) != key(made("1.0"))
    first = key(made("2"))
    gc.collect()
    assert first != key(made("3"))


def test_transforms():
    loop_fns = []

    def f(x):
        loop_fn = closing(x)
        loop_fns.append((key(loop_fn), Bound(CELL, loop_fn)()))
        return x

    torch.func.vmap(f)(torch.rand(3, 2))
    assert loop_fns[0][0] != key(closing(torch.rand(2)))
    assert loop_fns[0][1] is None


def test_a_mode_is_not_asked():
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            raise AssertionError(func)

    loop_fn = closing(torch.rand(2))
    with Mode():
        assert walk(CELL, loop_fn).key == Bound(CELL, loop_fn).key
        assert Bound(CELL, loop_fn)() is not None


def test_any_attribute_may_be_read():
    """Code that asks for attributes by computed names sees all of them."""

    def reading(owner):
        def loop_fn(*_):
            return getattr(owner, "uns" + "een")

        return loop_fn

    def literal(owner):
        def loop_fn(*_):
            return getattr(owner, "unseen", None)

        return loop_fn

    class Holder:
        unused = 0

    holder = Holder()
    named = key(literal(holder))
    holder.unused = 1
    assert key(literal(holder)) == named
    holder.unseen = 1
    assert key(literal(holder)) != named
    before, bind = key(reading(holder)), Bound(CELL, reading(holder))
    assert bind() is not None
    holder.unseen = 2
    assert key(reading(holder)) != before
    assert bind() is None


def test_a_class_as_a_value():
    """Code that makes instances sees what ``__init__`` sees."""

    def maker(value):
        class Made:
            def __init__(self):
                self.value = value

        return Made

    def loop(value):
        made = maker(value)
        return lambda *_: made()

    assert key(loop(1)) == key(loop(1))
    assert key(loop(1)) != key(loop(2))


def test_other_modules_of_the_same_name(tmp_path):
    """A module of the user that is called like one of the standard library is the user's all the same."""
    module = ModuleType("helpers")
    module.N = 3
    loop_fn = closing(module)
    assert key(loop_fn) == key(loop_fn)
    scope = {"helpers": module, "__name__": "user"}
    exec("def loop_fn(*_): return helpers.N", scope)
    before, bind = key(scope["loop_fn"]), Bound(CELL, scope["loop_fn"])
    module.N = 4
    assert key(scope["loop_fn"]) != before
    assert bind() is None


def test_a_loop_runs_on_what_was_walked():
    """Walking changes nothing."""
    loop_fn = token_loop(max_steps=3)
    cell = cells.GRUCell(3, 4)
    before = fusedrnn.raw_rnn(cell, loop_fn)[0].stack()
    walk(cell, loop_fn)
    Bound(cell, loop_fn)()
    assert torch.equal(fusedrnn.raw_rnn(cell, loop_fn)[0].stack(), before)
