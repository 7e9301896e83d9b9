"""What a module is beside what it computes: parameters, attributes, copies, state_dicts, and how tools of torch get at it."""

import copy
import inspect
import io
import itertools
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fusedrnn

from .pairs import KINDS, pair, tensors

OPTIONS = [
    {},
    {"num_layers": 2, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.25},
]


def classes(kind):
    return getattr(nn, kind), getattr(fusedrnn.nn, kind)


@pytest.mark.parametrize(
    ("kind", "options"),
    [*itertools.product(KINDS, OPTIONS), ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 3})],
)
def test_is_made_like_torch(kind, options):
    torch_class, own_class = classes(kind)
    torch.manual_seed(3)
    theirs = torch_class(5, 4, **options)
    torch.manual_seed(3)
    ours = own_class(5, 4, **options)
    for (name, mine), (expected_name, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == expected_name
        assert torch.equal(mine, expected)
        assert mine.requires_grad
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    for mine, expected in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert all(map(torch.equal, mine, expected))
    for name in ours.__constants__:
        assert getattr(ours, name) == getattr(theirs, name)
        assert type(getattr(ours, name)) is type(getattr(theirs, name))
    assert isinstance(ours, nn.RNNBase)
    assert ours.flatten_parameters() is None


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_stand_in_the_order_of_torch(kind):
    documented = classes(kind)[0].__doc__.splitlines()[0]
    names = [part.split("=")[0] for part in documented[documented.index("(") + 1 : -1].replace(" ", "").split(",")]
    parameters = list(inspect.signature(classes(kind)[1]).parameters.values())
    assert [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY] == names
    own = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert own - {"proj_size"} == {"layer_norm", "zoneout", "backend"}


def test_arguments_by_place():
    assert repr(fusedrnn.nn.LSTM(3, 4, 2, False, True, 0.5, True, 2)) == repr(nn.LSTM(3, 4, 2, False, True, 0.5, True, 2))
    assert repr(fusedrnn.nn.GRU(3, 4, 2, False, True, 0.5, True)) == repr(nn.GRU(3, 4, 2, False, True, 0.5, True))
    ours = fusedrnn.nn.RNN(3, 4, 2, "relu", False, True, 0.5, True)
    assert repr(ours) == repr(nn.RNN(3, 4, 2, "relu", False, True, 0.5, True))
    assert (ours.nonlinearity, ours.mode) == ("relu", "RNN_RELU")


def test_own_options_show():
    assert repr(fusedrnn.nn.LSTM(3, 4, layer_norm=True, zoneout=(0.1, 0.5), backend="native")) == (
        "LSTM(3, 4, layer_norm=True, zoneout=(0.1, 0.5), backend='native')"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dtype_and_device(kind):
    module = classes(kind)[1](3, 4, device="meta", dtype=torch.bfloat16, layer_norm=True)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    module = classes(kind)[1](3, 4).double()
    assert module(torch.randn(2, 1, 3, dtype=torch.float64))[0].dtype == torch.float64
    assert classes(kind)[1](3, 4, device="meta").to_empty(device="cpu").weight_hh_l0.device.type == "cpu"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_copies(kind, layer_norm):
    module = classes(kind)[1](3, 4, 2, bidirectional=True, layer_norm=layer_norm)
    x = torch.randn(5, 2, 3)
    expected = module(x)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    fresh = classes(kind)[1](3, 4, 2, bidirectional=True, layer_norm=layer_norm)
    fresh.load_state_dict(module.state_dict())
    for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module)), loaded, fresh):
        assert all(map(torch.equal, tensors(other(x)), tensors(expected)))
        assert repr(other) == repr(module)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    assert not torch.equal(loaded(x)[0], module(x)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_state_dicts_go_both_ways(kind, options):
    theirs, ours = pair(kind, 3, 4, **options)
    theirs.eval(), ours.eval()
    x = torch.randn(5, 5, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        ours.load_state_dict(classes(kind)[0](3, 5, **options).state_dict())


def test_weights_may_be_replaced_or_shared():
    _, ours = pair("LSTM", 3, 4, bidirectional=True)
    ours.weight_hh_l0 = nn.Parameter(torch.zeros(16, 4))
    ours.bias_ih_l0_reverse = ours.bias_ih_l0
    theirs = nn.LSTM(3, 4, bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    assert sum(1 for _ in ours.parameters()) == 7


def test_parametrized_and_pruned_weights():
    theirs, ours = pair("GRU", 3, 4)
    for module in (theirs, ours):
        torch.manual_seed(0)
        parametrizations.weight_norm(module, "weight_hh_l0")
        prune.random_unstructured(module, "weight_ih_l0", 0.5)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x)[0].sum().backward()
    assert ours.weight_ih_l0_orig.grad is not None


def test_hooks_and_frozen_weights():
    _, ours = pair("LSTM", 3, 4)
    seen = []
    ours.register_forward_hook(lambda module, arguments, made: seen.append(made[0].shape))
    ours.requires_grad_(False)
    x = torch.randn(5, 2, 3, requires_grad=True)
    ours(x)[0].sum().backward()
    assert seen == [(5, 2, 4)]
    assert x.grad.any()
    assert ours.weight_hh_l0.grad is None


def test_trains_as_torch_does():
    theirs, ours = pair("LSTM", 3, 4, 2)
    x, target = torch.randn(5, 2, 3), torch.randn(5, 2, 4)
    for module in (theirs, ours):
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(module(x)[0], target).backward()
            optimizer.step()
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_one_layer_warns_where_the_module_is_made(kind):
    for cls in classes(kind):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cls(3, 4, dropout=0.5)
        (warning,) = caught
        assert "dropout option adds dropout after all but last recurrent layer" in str(warning.message)
        if cls.__module__.startswith("fusedrnn"):
            assert warning.filename == __file__


def test_the_backend_is_the_users():
    module = fusedrnn.nn.GRU(3, 4, dtype=torch.float64, backend="stepwise")
    x = torch.randn(2, 1, 3, dtype=torch.float64)
    made = module(x)
    module.backend = "persistent"
    with pytest.raises(fusedrnn.PlanError):  # which has no float64
        module(x)
    module.backend = "reference"
    torch.testing.assert_close(module(x), made)
