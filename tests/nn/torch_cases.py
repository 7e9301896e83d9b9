"""torch.nn's own cases for RNN, GRU and LSTM, from its testing package, run on these modules. `test_torch_cases` runs this file."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import fusedrnn

from .pairs import KINDS, tensors

# what torch's LSTM says of itself
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls in (nn.LSTM, nn.GRU, nn.RNN)}


def cases(kind, **options):
    """A module, its arguments and, where there is one, the function that gives what it must return, of each case."""
    options = {"device": "cpu", "dtype": torch.float64, "requires_grad": False, "training": True} | options
    for case in INFOS[kind].module_inputs_func(INFOS[kind], **options):
        module = getattr(fusedrnn.nn, kind)(*case.constructor_input.args, **case.constructor_input.kwargs)
        yield module.to(options["dtype"]).train(options["training"]), case


def test_there_are_cases_for_all():
    assert set(INFOS) == set(KINDS)
    assert all(sum(1 for _ in cases(kind)) >= 16 for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_forward(kind, dtype, training):
    for module, case in cases(kind, dtype=dtype, training=training):
        arguments = case.forward_input.args
        made = module(*arguments, **case.forward_input.kwargs)
        torch.testing.assert_close(made, case.reference_fn(module, *arguments, **case.forward_input.kwargs))
        theirs = getattr(nn, kind)(*case.constructor_input.args, **case.constructor_input.kwargs).to(dtype).train(training)
        theirs.load_state_dict(module.state_dict())
        torch.testing.assert_close(made, theirs(*arguments, **case.forward_input.kwargs))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    for module, case in cases(kind, requires_grad=True):
        weights = dict(module.named_parameters())
        sources = tensors(case.forward_input.args)

        def run(*given, module=module, weights=weights, sources=sources):
            count = len(sources)
            x, *hx = given[:count]
            state = () if not hx else (tuple(hx) if len(hx) == 2 else hx[0],)
            replaced = dict(zip(weights, given[count:], strict=True))
            return tuple(tensors(torch.func.functional_call(module, replaced, (x, *state))))

        assert gradcheck(run, (*sources, *weights.values()), fast_mode=True)


@pytest.mark.parametrize("kind", ["GRU", "RNN"])  # torch has none for LSTM
def test_packed_sequences(kind):
    for module, case in cases(kind, with_packed_sequence=True):
        theirs = getattr(nn, kind)(*case.constructor_input.args, **case.constructor_input.kwargs).double()
        theirs.load_state_dict(module.state_dict())
        mine, expected = module(*case.forward_input.args), theirs(*case.forward_input.args)
        torch.testing.assert_close(tensors(mine), tensors(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_errors(kind):
    found = INFOS[kind].module_error_inputs_func(INFOS[kind], device="cpu", dtype=torch.float32, requires_grad=False, training=False)
    for error in found:
        case = error.module_error_input
        make = getattr(fusedrnn.nn, kind)
        arguments = case.constructor_input
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                make(*arguments.args, **arguments.kwargs)
        else:
            module = make(*arguments.args, **arguments.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*case.forward_input.args, **case.forward_input.kwargs)
