"""What `explain` says of loops of every kind: the facts, not how they are laid out."""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedrnn
from fusedrnn import PlanError, TensorArray, feedback, memory
from fusedrnn.capture import cache
from fusedrnn.cells import AttentionWrapper, BahdanauAttention
from fusedrnn.explanation import STAGES, explain
from fusedrnn.kernels import gpu
from fusedrnn.kernels.cpu import build

B, T, D, H, V = 4, 5, 3, 6, 9

pytestmark = pytest.mark.usefixtures("auto")


@pytest.fixture(autouse=True)
def _no_gradients():
    cache.clear()
    with torch.no_grad():
        yield


@pytest.fixture
def made():
    """What most loops are made of, by name."""
    return {
        "cell": nn.GRUCell(D, H),
        "embedding": nn.Embedding(V, D),
        "project": nn.Linear(H, V),
        "h0": torch.zeros(B, H),
        "x": torch.randn(T, B, D),
        "targets": torch.randint(V, (T, B)),
        "lengths": torch.tensor([5, 2, 3, 1]),
    }


def line_of(function, text):
    """``file:line`` of the line of a function that holds this text."""
    lines, first = inspect.getsourcelines(function)
    (place,) = [number for number, line in enumerate(lines) if text in line]
    return f"{function.__code__.co_filename}:{first + place}"


def sequence(made, read, finished=None):
    lengths, h0 = made["lengths"], made["h0"]

    def loop_fn(time, output, state, loop_state):
        done = time >= lengths if finished is None else finished(time)
        return done, read(time), h0 if output is None else state, output, None

    return loop_fn


def facts(cell, loop_fn, **options):
    """The explanation as data; its text must come out, too."""
    explanation = explain(cell, loop_fn, **options)
    found = explanation.as_dict()
    assert json.loads(json.dumps(found)) == found
    assert max(map(len, str(explanation).splitlines())) <= 110
    return found


def kinds(found):
    return [finish["kind"] for finish in found["step"]["finished"]]


def bounds(found):
    return sorted(bound["steps"] for bound in found["step"]["bounds"])


# Reads


@pytest.mark.parametrize("dim", [0, 1])
def test_sequence(made, dim):
    lengths, h0 = made["lengths"], made["h0"]
    x = made["x"] if dim == 0 else made["x"].transpose(0, 1).contiguous()

    def loop_fn(time, output, state, loop_state):
        done = time >= lengths
        step = x[time] if dim == 0 else x[:, time]
        return done, step, h0 if output is None else state, output, None

    found = facts(made["cell"], loop_fn)
    (read,) = found["step"]["reads"]
    assert read == {
        "tensor": "x", "shape": list(x.shape), "dim": dim, "index": "time", "per_row": False, "location": line_of(loop_fn, "step = x"),
    }  # fmt: skip
    assert [fed["kind"] for fed in found["step"]["feedback"]] == ["none"]
    (finish,) = found["step"]["finished"]
    assert finish == {"kind": "lengths", "text": "time >= lengths", "location": line_of(loop_fn, "done = ")}
    assert bounds(found) == [5, T]
    rows = found["step"]["rows"]
    assert rows == {"batch": B, "fixed": False, "fixed_at": None, "local": True, "mixes": None, "leave": True, "why_not": None}
    assert [(p["m"], p["k"], p["n"], p["weight"]) for p in found["step"]["ahead"]] == [(B, D, 3 * H, "cell.weight_ih.T")]
    (phase,) = found["step"]["phases"]
    assert [(p["m"], p["k"], p["n"]) for p in phase["products"]] == [(B, H, 3 * H)]
    assert phase["elementwise"] > 5
    cost = found["step"]["cost"]
    assert cost["product_flops"] == 2 * (D + H) * 3 * H
    assert cost["weight_bytes"] == 4 * H * 3 * H  # the inputs' product is made ahead
    assert cost["state_bytes"] == cost["emit_bytes"] == 4 * H
    assert found["step"]["draws"] == 0


@pytest.mark.parametrize(
    ("read", "index", "steps"),
    [
        (lambda x, time: x[time - 1], "time - 1", [5, T + 1]),
        (lambda x, time: x[4 - time], "4 - time", [5]),
        (lambda x, time: x[2 * time], "time * 2", [5]),
        (lambda x, time: x[time.clamp(max=T - 1)], "min(time, 4)", [5]),
    ],
)
def test_indices(made, read, index, steps):
    x = made["x"]
    found = facts(made["cell"], sequence(made, lambda time: read(x, time)))
    assert [read["index"] for read in found["step"]["reads"]] == [index]
    assert bounds(found) == steps


def test_pointer(made):
    x, lengths, h0, rows = made["x"].transpose(0, 1).contiguous(), made["lengths"], made["h0"], torch.arange(B)

    def loop_fn(time, output, state, at):
        at = torch.zeros(B, dtype=torch.int64) if output is None else at + (output.sum(1) > 0)
        return time >= lengths, x[rows, at], h0 if output is None else state, output, at

    step = facts(made["cell"], loop_fn)["step"]
    (read,) = step["reads"]
    assert (read["tensor"], read["dim"], read["per_row"]) == ("x", 1, True)
    assert "loop_state" in read["index"]
    assert step["feedback"][0]["kind"] == "computed"
    assert not step["rows"]["leave"]


def test_array(made):
    array = TensorArray(torch.float32).unstack(made["x"])
    (read,) = facts(made["cell"], sequence(made, array.read))["step"]["reads"]
    assert (read["index"], read["dim"], read["shape"]) == ("time", 0, [T, B, D])


# Feedback


def test_greedy(made):
    embedding, project, h0 = made["embedding"], made["project"], made["h0"]

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return False, torch.zeros(B, D), h0, torch.zeros((), dtype=torch.int64), None
        token = project(output).argmax(-1)
        finished = (token == 3) | (time > 20)
        return finished, embedding(token), state, token, None

    found = facts(made["cell"], loop_fn)
    (fed,) = found["step"]["feedback"]
    assert (fed["kind"], fed["pick"]) == ("greedy", "greedy")
    assert fed["embedding"]["table"] == "embedding.weight"
    assert (fed["embedding"]["shape"], fed["embedding"]["vocabulary"]) == ([V, D], V)
    assert fed["embedding"]["location"] == line_of(loop_fn, "embedding(token)")
    assert kinds(found) == ["token", "steps"]
    assert [finish["text"] for finish in found["step"]["finished"]] == ["token == 3", "time > 20"]
    assert {finish["location"] for finish in found["step"]["finished"]} == {line_of(loop_fn, "finished = ")}
    assert bounds(found) == [21]
    assert found["step"]["reads"] == []
    assert found["step"]["moved"]["folded"]
    assert len(found["step"]["phases"]) == 2
    assert "argmax" in found["step"]["phases"][1]["others"]


def test_sampled(made):
    loop_fn = feedback.sample(made["embedding"], made["project"], 0, 1, made["h0"], 12)
    found = facts(made["cell"], loop_fn)
    assert found["step"]["feedback"][0]["kind"] == "sampled"
    assert found["step"]["draws"] == 1
    assert kinds(found) == ["token", "steps"]
    assert found["loop_fn"] == "TokenLoop"


def test_scheduled(made):
    loop_fn = feedback.scheduled_sampling(
        made["embedding"], made["project"], made["targets"], made["lengths"], 0, made["h0"], probability=0.5
    )
    found = facts(made["cell"], loop_fn)
    fed = found["step"]["feedback"][0]
    assert (fed["kind"], fed["pick"], fed["embedding"]["vocabulary"]) == ("scheduled", "sampled", V)
    assert [read["index"] for read in found["step"]["reads"]] == ["time - 1"]
    assert found["step"]["draws"] == 2
    assert kinds(found) == ["lengths"]


def test_forced_prefix(made):
    greedy = feedback.greedy(made["embedding"], made["project"], 0, 1, made["h0"], 12)
    found = facts(made["cell"], feedback.forced_prefix(greedy, made["targets"]))
    fed = found["step"]["feedback"][0]
    assert (fed["kind"], fed["pick"]) == ("forced", "greedy")
    assert 12 in bounds(found)


def test_teacher_forcing(made):
    loop_fn = feedback.teacher_forcing(made["embedding"], made["project"], made["targets"], made["lengths"], 0, made["h0"])
    found = facts(made["cell"], loop_fn)
    fed = found["step"]["feedback"][0]
    assert (fed["kind"], fed["pick"], fed["embedding"]["shape"]) == ("none", None, [V, D])
    assert [(read["index"], read["shape"]) for read in found["step"]["reads"]] == [("time - 1", [T, B])]


def test_output_and_fixed_steps(made):
    h0, back = made["h0"], torch.randn(H, D)

    def loop_fn(time, output, state, loop_state):
        return time >= 7, torch.zeros(B, D) if output is None else output @ back, h0 if output is None else state, output, None

    found = facts(made["cell"], loop_fn)
    assert found["step"]["feedback"][0]["kind"] == "output"
    assert kinds(found) == ["steps"]
    assert bounds(found) == [7]
    assert bounds(facts(made["cell"], loop_fn, max_steps=3)) == [3, 7]
    assert [p["weight"] for phase in found["step"]["phases"] for p in phase["products"]][-1] == "back"


def test_attention(made):
    memory, lengths = torch.randn(B, 7, 8), torch.tensor([7, 3, 1, 4])
    cell = AttentionWrapper(nn.GRUCell(D + 8, H), BahdanauAttention(H, 8, 4)).bind(memory, lengths)
    initial, x, until = cell.zero_state(), made["x"], made["lengths"]

    def loop_fn(time, output, state, loop_state):
        return time >= until, x[time], initial if output is None else state, output, None

    found = facts(cell, loop_fn)
    assert found["cell"] == "BoundAttention"
    assert [fed["kind"] for fed in found["step"]["feedback"]] == ["none"]
    assert [read["tensor"] for read in found["step"]["reads"]] == ["x"]
    assert found["step"]["rows"]["local"]
    cost = found["step"]["cost"]
    assert cost["product_flops"] == 2 * (D + 8 + H) * 3 * H + 2 * H * 4 + 2 * 7 * 8
    assert cost["weight_bytes"] == 4 * ((8 + H) * 3 * H + H * 4)


# How rows finish


@pytest.mark.parametrize(
    ("finished", "kind", "steps"),
    [
        (lambda time: time + 1 >= 5, "steps", 4),
        (lambda time: torch.full((), 6) <= time, "steps", 6),
        (lambda time: ~(time < 6), "steps", 6),
        (lambda time: time == 6, "steps", 6),
        (lambda time: (time >= 6) & (time < 9), "computed", None),
    ],
)
def test_finished(made, finished, kind, steps):
    x = torch.zeros(12, B, D)
    found = facts(made["cell"], sequence(made, lambda time: x[time], finished))
    assert kinds(found) == [kind]
    assert bounds(found) == ([12] if steps is None else [steps, 12])


def test_finished_on_a_value(made):
    h0, value = made["h0"], torch.zeros(B, D)

    def loop_fn(time, output, state, loop_state):
        return False if output is None else output.sum(1) > 2, value * 1, h0 if output is None else state, output, None

    assert kinds(facts(made["cell"], loop_fn)) == ["computed"]


def test_never(made):
    found = facts(made["cell"], sequence(made, lambda time: made["h0"][:, :D], lambda time: False), max_steps=2)
    assert kinds(found) == []
    assert bounds(found) == [2]


# Rows


class BatchNorm:
    output_size = state_size = H

    def __call__(self, inputs, state):
        new = torch.tanh(inputs.sum(1, keepdim=True) + state)
        new = new - new.mean(0)
        return new, new


def test_batch_norm(made):
    x = made["x"]
    rows = facts(BatchNorm(), sequence(made, lambda time: x[time]))["step"]["rows"]
    assert (rows["local"], rows["leave"]) == (False, False)
    assert rows["mixes"]["location"] == line_of(BatchNorm.__call__, "new.mean(0)")
    assert rows["mixes"]["line"] == "new = new - new.mean(0)"
    assert "batch" in rows["mixes"]["reason"]


def test_loop_state_of_rows(made):
    x, lengths, h0 = made["x"], made["lengths"], made["h0"]

    def loop_fn(time, output, state, best):
        best = torch.zeros(B) if output is None else torch.maximum(best, output.sum(1))
        return time >= lengths, x[time], h0 if output is None else state, output, best

    rows = facts(made["cell"], loop_fn)["step"]["rows"]
    assert (rows["local"], rows["leave"]) == (True, False)
    assert "loop_state" in rows["why_not"]


# What cannot be captured


def refused(cell, loop_fn):
    found = facts(cell, loop_fn)
    assert found["choice"]["executor"] == "reference"
    assert found["step"] is None
    assert found["choice"]["others"]["stepwise"] == found["refused"]
    with pytest.raises(PlanError):
        explain(cell, loop_fn).graph("captured")
    return found["refused"]


def test_branch(made):
    x, lengths, h0 = made["x"], made["lengths"], made["h0"]

    def loop_fn(time, output, state, loop_state):
        if output is not None and output.sum() > 0:
            output = output + 1
        return time >= lengths, x[time], h0 if output is None else state, output, None

    found = refused(made["cell"], loop_fn)
    assert found["location"] == line_of(loop_fn, "output.sum()")
    assert found["line"] == "if output is not None and output.sum() > 0:"
    assert "torch.where" in found["instead"]
    text = str(explain(made["cell"], loop_fn))
    assert "if output is not None and output.sum() > 0:" in text
    assert "torch.where" in text


def test_side_effect(made):
    x, seen = made["x"], []

    def read(time):
        seen.append(time)
        return x[time]

    loop_fn = sequence(made, read)
    found = refused(made["cell"], loop_fn)
    assert "seen" in found["reason"]
    assert "loop_state" in found["instead"]


def test_a_count(made):
    x, calls = made["x"], 0

    def read(time):
        nonlocal calls
        calls += 1
        return x[time]

    explanation = explain(made["cell"], sequence(made, read))
    assert explanation.as_dict()["step"]["counts"] == ["read changes nonlocal `calls`, where it is called: at time 0 and not at every step"]
    assert "nonlocal `calls`, where it is called" in " ".join(str(explanation).split())


def test_print(made):
    x = made["x"]

    def read(time):
        print(end="")
        return x[time]

    found = refused(made["cell"], sequence(made, read))
    assert found["location"] == line_of(read, "print(")
    assert found["line"] == 'print(end="")'


def test_error_of_the_step(made):
    x, h0 = made["x"], made["h0"]

    def loop_fn(time, output, state, loop_state):
        return time >= 3, x[time], h0 if output is None else state @ h0, output, None

    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # as the loop raises it
        explain(made["cell"], loop_fn)


def test_error_of_time_0(made):
    with pytest.raises(ValueError, match="five values"):
        explain(made["cell"], lambda time, output, state, loop_state: (True, 1))
    with pytest.raises(TypeError, match="callable"):
        explain(made["cell"], None)
    with pytest.raises(ValueError, match="backend must be one of"):
        explain(made["cell"], sequence(made, made["x"].__getitem__), backend="fast")


# The executor


def test_executors(made, monkeypatch):
    cell, x = made["cell"], made["x"]
    loop_fn = sequence(made, lambda time: x[time])
    choice = facts(cell, loop_fn)["choice"]
    assert (choice["backend"], choice["executor"]) == ("auto", "stepwise")
    assert list(choice["others"]) == ["persistent", "native", "reference"]
    assert "compile" in choice["others"]["native"]["instead"]
    assert choice["others"]["reference"]["reason"].startswith("slower")
    assert facts(cell, loop_fn, backend="native")["choice"]["executor"] == "native"
    assert facts(cell, loop_fn, backend="persistent")["choice"]["executor"] == "persistent"  # emulated
    monkeypatch.setattr(gpu, "EMULATED", False)
    named = facts(cell, loop_fn, backend="persistent")["choice"]
    assert named["executor"] is None
    assert "PlanError" in named["reason"]
    assert "no step" in facts(cell, loop_fn, max_steps=0)["choice"]["reason"]
    with torch.enable_grad():
        assert facts(cell, loop_fn, backend="native")["choice"]["executor"] == "native"
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert "compiler" in facts(cell, loop_fn)["choice"]["others"]["native"]["reason"]
    monkeypatch.setenv("FUSEDRNN_BACKEND", "reference")
    assert facts(cell, loop_fn)["choice"]["executor"] == "reference"


def test_compiled(made):
    x = made["x"]
    loop_fn = sequence(made, lambda time: x[time])
    before = facts(made["cell"], loop_fn)
    fusedrnn.raw_rnn(made["cell"], loop_fn, backend="native")
    after = facts(made["cell"], loop_fn)
    assert after["choice"]["executor"] == "native"
    assert after["choice"]["others"]["stepwise"]["reason"].startswith("slower")
    assert after["step"] == before["step"]


def test_unlowered(made):
    x = made["x"]

    def read(time):
        return torch.linalg.qr(x[time][:, :, None] + x[time][:, None, :])[0][:, 0]

    loop_fn = sequence(made, read)
    found = facts(made["cell"], loop_fn)
    native = found["choice"]["others"]["native"]
    assert "qr" in native["reason"]
    assert native["location"] == line_of(read, "linalg.qr")
    assert found["step"]["phases"] is None
    assert found["step"]["cost"]["product_flops"] == 2 * (D + H) * 3 * H
    assert found["step"]["reads"]
    with pytest.raises(PlanError, match="qr"):
        explain(made["cell"], loop_fn).graph("lowered")


# What explaining leaves behind


def test_the_capture_is_kept_and_nothing_else_changes(made):
    loop_fn = feedback.sample(made["embedding"], made["project"], 0, 1, made["h0"], 12)
    before = torch.get_rng_state()
    explain(made["cell"], loop_fn)
    assert torch.equal(before, torch.get_rng_state())
    assert cache.size() == 1
    fusedrnn.raw_rnn(made["cell"], loop_fn)
    assert cache.size() == 1


def test_graphs(made):
    loop_fn = feedback.greedy(made["embedding"], made["project"], 0, 1, made["h0"], 12)
    explanation = explain(made["cell"], loop_fn)
    shown = {stage: explanation.graph(stage) for stage in STAGES}
    assert len(set(shown.values())) == len(STAGES)
    assert all("# cell.weight_hh" in text and text.splitlines()[-1].startswith("return ") for text in shown.values())
    assert "addmm" in shown["captured"]
    assert "addmm" not in shown["lowered"]
    with pytest.raises(ValueError, match="stage must be one of"):
        explanation.graph("compiled")
    assert repr(explanation) == "<Explanation of TokenLoop: stepwise>"


def test_text():
    class Sum:
        output_size = state_size = 2

        def __call__(self, inputs, state):
            return state + inputs, state + inputs

    x, zeros = torch.zeros(5, 3, 2), torch.zeros(3, 2)

    def loop_fn(time, output, state, loop_state):
        return time >= 5, F.relu(x[time]), zeros if output is None else state, output, None

    explanation = explain(Sum(), loop_fn)
    lines = [line.split("  (")[0] for line in str(explanation).splitlines()]
    assert lines == [
        "loop         Sum, test_text.<locals>.loop_fn",
        "             3 rows on cpu",
        "",
        "executor     stepwise (backend='auto'): the loop is not compiled yet",
        "  persistent emulated, it runs where it is named",
        "  native     it follows when the loop has run step by step for about 2 s, which is what compiling takes",
        "             -> loop = fusedrnn.compile(cell, loop_fn); loop.warmup() compiles now",
        "  reference  slower: it runs the cell and loop_fn as they are, in Python",
        "",
        "reads        x [5, 3, 2] along dimension 0 at time",
        "feedback     none: it does not depend on the steps before",
        "finished     fixed steps: time >= 5",
        "at most      5: x is read at time and has 5",
        "             5: time >= 5",
        "rows         no row depends on another; rows leave when they finish",
        "random       no draws",
        "",
        "step         1 phase",
        "  phase 0    4 elementwise, fused; read",
        "work         6 FLOPs per row and step (0 in products; 6 elementwise)",
        "memory       weights 0 B per step, state 8 B per row, emit 8 B per row",
        "",
        "kernel       planned for an H100, which this loop is not on: 1 group of 1 program, 8 rows each",
        "             1 phase and no barrier a step",
        "             0 B of weights a program on-chip",
        "             Shared memory about 0 bytes a program.",
        "             Model: 0.13 us a step: barriers 0.00, exchange 0.00, products 0.00, streaming 0.00, pointwise",
        "               0.13.",
    ]


def test_an_emit_behind_the_loop(made):
    """Its product counts, though no step makes it."""
    project = nn.Linear(H, 9)

    def loop_fn(time, output, state, loop_state):
        start = output is None
        return time >= T, made["x"][time], made["h0"] if start else state, torch.zeros(9) if start else project(output), None

    explanation = explain(made["cell"], loop_fn)
    step = explanation.as_dict()["step"]
    assert step["moved"]["sunk"] == [f"a product [{H}, 9] of an emit"]
    assert step["cost"]["after_flops"] == 2 * H * 9
    assert step["cost"]["ahead_flops"] == 2 * D * 3 * H
    assert step["cost"]["product_flops"] == 2 * (D + H) * 3 * H + 2 * H * 9
    assert step["cost"]["emit_bytes"] == 4 * 9
    assert "made for all steps after the loop: [4 x 6 x 9] with project.weight.T" in str(explanation)


@pytest.mark.parametrize("pick", [lambda x: x.topk(2).indices[:, 1], lambda x: (x.argmax(1) + 1) % 7])
def test_another_token_than_the_best(made, pick):
    def loop_fn(time, output, state, loop_state):
        start = output is None
        token = torch.zeros(B, dtype=torch.int64) if start else pick(made["project"](output))
        return time >= T, made["embedding"](token), made["h0"] if start else state, token[0] if start else token, None

    (fed,) = explain(made["cell"], loop_fn).as_dict()["step"]["feedback"]
    assert (fed["kind"], fed["pick"]) == ("computed", None)
    assert fed["embedding"]["table"] == "made['embedding'].weight"


def test_where_there_is_no_kernel(made):
    """What is not captured has no kernel on a GPU either, and says why."""

    def loop_fn(time, output, state, loop_state):
        if output is not None and output.sum() > 100:
            state = state * 0
        return time >= T, made["x"][time], made["h0"] if output is None else state, output, None

    others = explain(made["cell"], loop_fn).as_dict()["choice"]["others"]
    assert others["persistent"] == others["native"]
    assert "decides in Python" in others["persistent"]["reason"]


def test_the_line_that_holds_for_one_batch_size(made):
    def loop_fn(time, output, state, loop_state):
        read = made["x"][time]
        if output is not None:
            read = read + torch.arange(B)[:, None]
        return time >= T, read, made["h0"] if output is None else state, output, None

    explanation = explain(made["cell"], loop_fn)
    step, line = explanation.as_dict()["step"], line_of(loop_fn, "torch.arange(B)")
    assert (step["rows"]["fixed"], step["rows"]["fixed_at"]) == (True, line)
    assert step["kernel"]["programs"] >= 1  # its rows are told apart all the same


def test_the_backward(made, monkeypatch):
    cell, x = made["cell"], made["x"]
    loop_fn = sequence(made, lambda time: x[time])
    assert facts(cell, loop_fn)["step"]["backward"] is None  # nothing needs a gradient
    with torch.enable_grad():
        found = facts(cell, loop_fn)["step"]["backward"]
        assert found["gates_bytes"] > found["again_bytes"] > 0
        assert not found["again"]
        assert len(found["sums"]) == 2
        assert "backward     a loop from the last step to the first" in str(fusedrnn.explain(cell, loop_fn))
        monkeypatch.setattr(memory, "free", lambda device: 1)
        assert facts(cell, loop_fn)["step"]["backward"]["again"]
