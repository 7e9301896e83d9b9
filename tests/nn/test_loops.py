"""What torch.nn lacks: resets within a sequence, and torch.func transforms and forward-mode differentiation through the modules."""

import itertools
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn.capture import cache
from fusedrnn.kernels import gpu

from .pairs import KINDS, pair, results, state, tensors

pytestmark = pytest.mark.usefixtures("float64")
T, B, D, H = 6, 3, 3, 4


def own(hx, rows):
    """The state of some rows."""
    return tuple(part[:, rows] for part in hx) if isinstance(hx, tuple) else hx[:, rows]


def pieces(module, x, hx, flags):
    """One row ``[T, D]``, one direction: each piece between two resets run on its own, as the contract says."""
    starts = [0, *[t for t in range(1, len(flags)) if flags[t]], len(flags)]
    outputs = []
    for first, last in itertools.pairwise(starts):
        if flags[first]:
            hx = tuple(part * 0 for part in hx) if isinstance(hx, tuple) else hx * 0
        y, hx = module(x[first:last], hx)
        outputs.append(y)
    return torch.cat(outputs), hx


flags = st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=B, max_size=B)


@given(st.sampled_from(KINDS), st.integers(1, 2), flags, st.booleans())
def test_resets_cut_sequences_into_pieces(kind, layers, flags, batch_first):
    module = getattr(fusedrnn.nn, kind)(D, H, layers, batch_first=batch_first)
    x, hx, reset = torch.randn(T, B, D), state(module, B), torch.tensor(flags).T
    made = module(x.transpose(0, 1), hx, reset=reset.T) if batch_first else module(x, hx, reset=reset)
    y = made[0].transpose(0, 1) if batch_first else made[0]
    for row in range(B):
        expected, last = pieces(module, x[:, row], own(hx, row), reset[:, row])
        torch.testing.assert_close(y[:, row], expected)
        torch.testing.assert_close(own(made[1], row), last)
        alone = module(x[:, row], own(hx, row), reset=reset[:, row])
        torch.testing.assert_close(alone, (expected, last))


@given(flags, st.lists(st.integers(0, T), min_size=B, max_size=B))
def test_the_backward_direction_carries_nothing_across_a_reset_either(flags, lengths):
    module = fusedrnn.nn.GRU(D, H, bidirectional=True)
    one_way = fusedrnn.nn.GRU(D, H)
    one_way.load_state_dict({name: getattr(module, name + "_reverse") for name in one_way.state_dict()})
    x, hx, reset = torch.randn(T, B, D), state(module, B), torch.tensor(flags).T
    y, last = module(x, hx, lengths=torch.tensor(lengths), reset=reset)
    for row, length in enumerate(lengths):
        if length:
            between = reset[1:length, row].flip(0)  # read from the end, a piece begins behind its own first element
            expected, final = pieces(one_way, x[:length, row].flip(0), hx[1:, row], torch.cat((torch.tensor([False]), between)))
            torch.testing.assert_close(y[:length, row, H:], expected.flip(0))
            torch.testing.assert_close(last[1:, row], final)
        assert not y[length:, row].any()


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}])
def test_resets_of_packed_sequences_are_in_the_order_of_the_user(options):
    module = fusedrnn.nn.LSTM(D, H, **options)
    x, lengths, reset = torch.randn(T, B, D), torch.tensor([2, 6, 4]), torch.rand(T, B) < 0.4
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, last = module(packed, reset=reset)
    expected = module(x, lengths=lengths, reset=reset)
    torch.testing.assert_close((pad_packed_sequence(y)[0], last), expected)


@pytest.mark.parametrize("backend", ["stepwise", "native"])
def test_captured_loops_reset(backend):
    module = fusedrnn.nn.LSTM(D, H, bidirectional=True, backend=backend)
    x, reset, lengths = torch.randn(T, B, D), torch.rand(T, B) < 0.4, torch.tensor([6, 0, 3])
    made, gradients = results(module, x, None, reset=reset, lengths=lengths)
    module.backend = "reference"
    expected, wanted = results(module, x, None, reset=reset, lengths=lengths)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(gradients, wanted)


def test_several_threads_may_be_the_first_to_call_a_module():
    cache.clear()
    module, x = fusedrnn.nn.GRU(D, H, backend="native"), [torch.randn(T, B, D) for _ in range(3)]
    made = [None] * 3

    def run(place):
        with torch.no_grad():
            made[place] = module(x[place])

    threads = [threading.Thread(target=run, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    module.backend = "reference"
    torch.testing.assert_close(made, [module(one) for one in x])


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"num_layers": 2}),
        ("GRU", {"bidirectional": True}),
        ("RNN", {"layer_norm": True, "zoneout": 0.3}),
        ("LSTM", {"proj_size": 2}),
    ],
)
def test_kernels_compute_the_same(kind, options):
    if not gpu.EMULATED:
        pytest.skip("no kernel is emulated")
    module = getattr(fusedrnn.nn, kind)(D, H, **options, dtype=torch.float32)
    x, reset, lengths = torch.randn(T, B, D, dtype=torch.float32), torch.rand(T, B) < 0.4, torch.tensor([6, 0, 3])
    made = []
    for module.backend in ("persistent", "reference"):
        torch.manual_seed(0)
        made.append(module(x, lengths=lengths, reset=reset))
    torch.testing.assert_close(made[0], made[1])


def test_a_reset_stops_gradients_and_what_is_not_finite():
    module = fusedrnn.nn.GRU(D, H)
    x, h = torch.randn(T, 1, D), torch.full((1, 1, H), torch.inf, requires_grad=True)
    reset = torch.zeros(T, 1, dtype=torch.bool)
    reset[0] = True
    y, _ = module(x, h, reset=reset)
    y.sum().backward()
    assert y.isfinite().all()
    assert not h.grad.any()


# torch's own, where it first differentiates forwards
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

CASES = [
    ("LSTM", {"num_layers": 2}),
    ("GRU", {"bidirectional": True}),
    ("RNN", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 2, "layer_norm": True}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_per_sample_gradients(kind, options):
    module = getattr(fusedrnn.nn, kind)(D, H, **options)
    weights = dict(module.named_parameters())
    x, lengths, reset = torch.randn(T, B, D), torch.tensor([6, 1, 3]), torch.rand(T, B) < 0.3
    x[3:, 2] = torch.nan  # past an end

    def loss(weights, x, length, reset):
        y, _ = functional_call(module, weights, (x,), {"lengths": length, "reset": reset})
        return y.square().sum()

    made = vmap(grad(loss), in_dims=(None, 1, 0, 1))(weights, x, lengths, reset)
    for row in range(B):
        expected = torch.autograd.grad(loss(weights, x[:, row], lengths[row], reset[:, row]), list(weights.values()))
        torch.testing.assert_close([gradient[row] for gradient in made.values()], list(expected))


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_ensembles(kind, options):
    modules = [getattr(fusedrnn.nn, kind)(D, H, **options) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(modules)
    x = torch.randn(T, B, D)
    made = vmap(lambda weights: functional_call(modules[0], weights, (x,)))(weights)
    for place, module in enumerate(modules):
        torch.testing.assert_close([tensor[place] for tensor in tensors(made)], tensors(module(x)))


@FORWARD_MODE
def test_jvp_hessian_and_forward_mode():
    _, module = pair("GRU", 2, 2, num_layers=2)
    x, tangent = torch.randn(3, 1, 2), torch.randn(3, 1, 2)
    expected = (torch.autograd.functional.jvp(lambda x: module(x)[0], x, tangent))[1]
    torch.testing.assert_close(jvp(lambda x: module(x)[0], (x,), (tangent,))[1], expected)
    with forward_ad.dual_level():
        y, _ = module(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected)
    found = hessian(lambda x: module(x)[0].square().sum())(x)
    wanted = torch.autograd.functional.hessian(lambda x: module(x)[0].square().sum(), x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_zoneout_and_dropout_under_vmap(randomness):
    module = fusedrnn.nn.LSTM(D, 40, 2, zoneout=0.5, dropout=0.5)
    x = torch.randn(T, 1, D).expand(T, 2, D)
    y = vmap(lambda x: module(x)[0], in_dims=1, out_dims=1, randomness=randomness)(x)
    assert torch.equal(y[:, 0], y[:, 1]) is (randomness == "same")


@FORWARD_MODE
@pytest.mark.parametrize("backend", ["native", "stepwise", "persistent"])
def test_a_named_backend_does_not_take_part_in_transforms(backend):
    module = fusedrnn.nn.GRU(D, H, backend=backend)
    x = torch.randn(T, B, D)
    with pytest.raises(fusedrnn.PlanError, match=f"backend='{backend}' cannot take part in torch.func transforms .* use backend='auto'"):
        vmap(lambda x: module(x)[0], in_dims=1)(x)
    with forward_ad.dual_level(), pytest.raises(fusedrnn.PlanError, match="forward-mode"):
        module(forward_ad.make_dual(x, x))


@pytest.mark.usefixtures("auto")
def test_transforms_are_no_fallback_to_tell_of():
    module, x = fusedrnn.nn.GRU(D, H), torch.randn(T, B, D)
    before = dict(fusedrnn.fallbacks())
    vmap(lambda x: module(x)[0], in_dims=1)(x)
    assert fusedrnn.fallbacks() == before
