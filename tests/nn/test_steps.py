"""Layer normalisation and zoneout: against fusedrnn's cells, which have both, and against what they must do at their ends."""

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import dynamic_rnn

from .pairs import KINDS, results, state, tensors

pytestmark = pytest.mark.usefixtures("float64")
T, B, D, H = 6, 3, 4, 5


def randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module


def cell_of(module, cell, suffix="_l0"):
    cell.load_state_dict({name.removesuffix(suffix): value for name, value in module.state_dict().items() if name.endswith(suffix)})
    return cell


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_an_lstm_with_layer_norm_is_the_cell_in_a_loop(bias, proj_size):
    module = randomised(fusedrnn.nn.LSTM(D, H, bias=bias, proj_size=proj_size, layer_norm=True))
    cell = cell_of(module, fusedrnn.LSTMCell(D, H, bias=bias, num_proj=proj_size or None, layer_norm=True))
    x, hx = torch.randn(T, B, D), state(module, B)
    y, last = module(x, hx)
    expected, final = dynamic_rnn(cell, x, initial_state=tuple(part[0] for part in hx), time_major=True)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(tuple(part[0] for part in last), final)


@pytest.mark.parametrize("bias", [False, True])
def test_a_gru_with_layer_norm_is_the_cell_in_a_loop(bias):
    module = randomised(fusedrnn.nn.GRU(D, H, bias=bias, layer_norm=True))
    cell = cell_of(module, fusedrnn.GRUCell(D, H, bias=bias, layer_norm=True))
    x = torch.randn(T, B, D)
    torch.testing.assert_close(module(x)[0], dynamic_rnn(cell, x, time_major=True)[0])


@pytest.mark.parametrize("bias", [False, True])
def test_an_rnn_with_layer_norm_normalises_the_sum(bias):
    module = randomised(fusedrnn.nn.RNN(D, H, nonlinearity="relu", bias=bias, layer_norm=True))
    x = torch.randn(T, B, D)
    h, outputs = torch.zeros(B, H), []
    for step in x:
        shift = module.shift_l0 if bias else None
        h = nn.functional.layer_norm(step @ module.weight_ih_l0.T + h @ module.weight_hh_l0.T, (H,), module.gain_l0, shift).relu()
        outputs.append(h)
    torch.testing.assert_close(module(x)[0], torch.stack(outputs))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_norms(kind):
    module = getattr(fusedrnn.nn, kind)(D, H, 2, bidirectional=True, layer_norm=True)
    names = dict(module.named_parameters())
    assert not any("bias" in name for name in names)
    assert module.bias is True
    assert all((p == 1).all() for name, p in names.items() if "gain" in name)
    assert not any(p.any() for name, p in names.items() if "shift" in name)
    assert [len(weights) for weights in module.all_weights] == [len(names) // 4] * 4
    randomised(module).reset_parameters()
    assert all((p == 1).all() for name, p in names.items() if "gain" in name)
    assert module.weight_hh_l1_reverse.abs().max() <= H**-0.5
    *_, gradients = results(module, torch.randn(T, B, D), None)
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"num_layers": 2, "bidirectional": True}])
def test_zoneout_at_its_ends(kind, options):
    cls = getattr(fusedrnn.nn, kind)
    plain, none, all_kept = cls(D, H, **options), cls(D, H, zoneout=0.0, **options), cls(D, H, zoneout=1.0, **options)
    for other in (none, all_kept):
        other.load_state_dict(plain.state_dict())
    x, hx = torch.randn(T, B, D), state(plain, B)
    torch.testing.assert_close(none(x, hx), plain(x, hx))
    for mode in (True, False):
        torch.testing.assert_close(all_kept.train(mode)(x, hx)[1], hx)


@pytest.mark.parametrize("kind", KINDS)
def test_zoneout_in_eval_mode_is_its_mean(kind):
    module = getattr(fusedrnn.nn, kind)(D, H, zoneout=0.3).eval()
    plain = getattr(fusedrnn.nn, kind)(D, H)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(1, B, D)
    hx = state(plain, B)
    old, new, mean = tensors(hx), tensors(plain(x, hx)[1]), tensors(module(x, hx)[1])
    for before, after, got in zip(old, new, mean, strict=True):
        torch.testing.assert_close(got, 0.3 * before + 0.7 * after)


def test_zoneout_keeps_single_elements_of_the_state():
    module = fusedrnn.nn.GRU(D, 400, zoneout=0.25)
    plain = fusedrnn.nn.GRU(D, 400)
    plain.load_state_dict(module.state_dict())
    x, h = torch.randn(1, B, D), torch.randn(1, B, 400)
    old, new, got = h[0], plain(x, h)[1][0], module(x, h)[1][0]
    assert ((got == old) | (got == new)).all()
    assert abs((got == old).double().mean() - 0.25) < 0.05


def test_h_and_c_have_rates_of_their_own():
    module = fusedrnn.nn.LSTM(D, H, zoneout=(0.0, 1.0))
    x, hx = torch.randn(T, B, D), (torch.randn(1, B, H), torch.randn(1, B, H))
    _, (h, c) = module(x, hx)
    assert torch.equal(c, hx[1])
    assert not (h == hx[0]).any()


@pytest.mark.parametrize("backend", ["reference", "stepwise", "native"])
def test_torchs_seed_decides_zoneout(backend):
    module = fusedrnn.nn.LSTM(D, H, 2, zoneout=0.5, backend=backend)
    x, lengths = torch.randn(T, B, D), torch.tensor([6, 2, 4])
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(module(x, lengths=lengths)[0])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    torch.manual_seed(0)
    reference = fusedrnn.nn.LSTM(D, H, 2, zoneout=0.5, backend="reference")
    reference.load_state_dict(module.state_dict())
    torch.manual_seed(0)
    torch.testing.assert_close(reference(x, lengths=lengths)[0], made[0])


def test_layers_and_directions_draw_apart():
    module = fusedrnn.nn.GRU(D, 64, 2, bidirectional=True, zoneout=0.5)
    x, h = torch.randn(1, B, D), torch.randn(4, B, 64)
    kept = module(x, h)[1] == h
    for one in range(4):
        for other in range(one):
            assert 0.3 < (kept[one] == kept[other]).double().mean() < 0.7
