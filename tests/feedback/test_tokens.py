"""Token loops against loops written out by hand, one row at a time; the statistics and the reproducibility of sampling."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn import raw_rnn
from fusedrnn.capture import cache
from fusedrnn.feedback import BasicDecoderOutput, forced_prefix, greedy, sample, scheduled_sampling, teacher_forcing

V, E, H, B, START, END = 9, 4, 6, 5, 0, 1


class Model:
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.cell, self.embedding, self.project = torch.nn.GRUCell(E, H), torch.nn.Embedding(V, E), torch.nn.Linear(H, V)
        for parameter in (*self.cell.parameters(), *self.project.parameters()):
            parameter.data.mul_(3)
        self.h = torch.randn(B, H)

    @property
    def parts(self):
        return self.embedding, self.project

    def logits(self, tokens, row):
        """The logits after each of the tokens that are fed to one row."""
        h, found = self.h[row : row + 1], []
        for token in tokens:
            h = self.cell(self.embedding(torch.tensor([token])), h)
            found.append(self.project(h)[0])
        return torch.stack(found)

    def run(self, loop_fn):
        with torch.no_grad():
            return raw_rnn(self.cell, loop_fn)[0]


@pytest.fixture
def model():
    return Model()


def greedy_by_hand(model, row, steps, forced=()):
    """Tokens of one row, decoded from the start over at each step."""
    tokens = []
    while len(tokens) < steps:
        best = int(model.logits([START, *tokens], row)[-1].argmax())
        tokens.append(forced[len(tokens)] if len(tokens) < len(forced) else best)
        if tokens[-1] == END and len(tokens) > len(forced):
            break
    return tokens


@given(st.integers(0, 50), st.integers(0, 7))
def test_greedy_equals_a_loop_by_hand(seed, steps):
    model = Model(seed)
    emits = model.run(greedy(*model.parts, START, END, model.h, steps))
    for row in range(B):
        tokens = greedy_by_hand(model, row, steps)
        assert emits.stack()[:, row].tolist() == tokens + [0] * (emits.size() - len(tokens))
        assert emits.lengths[row] == len(tokens)
    assert emits.dtype == torch.int64


def test_embedding_and_project_may_be_plain_parts(model):
    whole = model.run(greedy(*model.parts, START, END, model.h, 6))
    table, weight, bias = model.embedding.weight, model.project.weight, model.project.bias
    for embedding in (table, lambda tokens: table[tokens]):
        plain = greedy(embedding, lambda out: out @ weight.T + bias, torch.full((B,), START), END, model.h, 6)
        assert torch.equal(model.run(plain).stack(), whole.stack())


def test_a_loop_may_end_by_token_or_by_steps_alone(model):
    assert model.run(greedy(*model.parts, START, None, model.h, 6)).lengths.tolist() == [6] * B
    by_token = greedy(*model.parts, START, 7, model.h)
    with torch.no_grad():
        emits = raw_rnn(model.cell, by_token, max_steps=30)[0]
    for row in range(B):
        tokens = emits.stack()[:, row].tolist()
        assert (7 in tokens) != emits.truncated[row].item()


@pytest.mark.parametrize("emit", ["tokens", "logits", "both"])
def test_what_is_emitted(model, emit):
    emits = model.run(greedy(*model.parts, START, None, model.h, 4, emit=emit))
    tokens = model.run(greedy(*model.parts, START, None, model.h, 4)).stack()
    if emit == "both":
        assert isinstance(emits, BasicDecoderOutput)
        assert torch.equal(emits.sample_id.stack(), tokens)
        assert torch.equal(emits.rnn_output.stack().argmax(-1), tokens)
    else:
        assert torch.equal(emits.stack() if emit == "tokens" else emits.stack().argmax(-1), tokens)


def test_without_a_project_the_output_is_the_logits():
    cell, embedding = torch.nn.GRUCell(E, V), torch.nn.Embedding(V, E)
    emits, _, _ = raw_rnn(cell, greedy(embedding, None, START, None, torch.zeros(2, V), 3, emit="logits"))
    assert emits.stack().shape == (3, 2, V)


def test_logits_under_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = model.cell(model.embedding(torch.zeros(B, dtype=torch.int64)), model.h)
        emits, _, _ = raw_rnn(model.cell, greedy(*model.parts, START, None, h, 3, emit="logits"))
    assert emits.stack().dtype == torch.bfloat16


def test_teacher_forcing_feeds_the_targets_and_trains(model):
    targets, lengths = torch.randint(0, V, (6, B)), torch.tensor([6, 4, 1, 0, 6])
    loop_fn = teacher_forcing(*model.parts, targets, lengths, START, model.h)
    emits, _, _ = raw_rnn(model.cell, loop_fn)
    assert emits.lengths.tolist() == lengths.tolist()
    for row, length in enumerate(lengths.tolist()):
        if length:
            expected = model.logits([START, *targets[: length - 1, row].tolist()], row)
            torch.testing.assert_close(emits.stack()[:length, row], expected)
        assert not emits.stack()[length:, row].any()
    torch.nn.functional.cross_entropy(emits.stack().flatten(0, 1), targets.flatten()).backward()
    assert all(p.grad.abs().sum() > 0 for p in (*model.cell.parameters(), *model.embedding.parameters(), *model.project.parameters()))


def test_scheduled_sampling_lies_between_teacher_and_own_tokens(model):
    targets = torch.randint(0, V, (5, B))
    teacher = model.run(teacher_forcing(*model.parts, targets, None, START, model.h)).stack()
    never = model.run(scheduled_sampling(*model.parts, targets, None, START, model.h, probability=0.0, seed=1)).stack()
    torch.testing.assert_close(never, teacher)
    always = scheduled_sampling(*model.parts, targets, None, START, model.h, probability=1.0, seed=1, emit="both")
    own = model.run(always)
    for row in range(B):
        fed = [START, *own.sample_id.stack()[:-1, row].tolist()]
        torch.testing.assert_close(own.rnn_output.stack()[:, row], model.logits(fed, row))
    chances = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    mixed = model.run(scheduled_sampling(*model.parts, targets, None, START, model.h, probability=chances, seed=1)).stack()
    torch.testing.assert_close(mixed[:, ::2], teacher[:, ::2])
    torch.testing.assert_close(mixed[:, 1::2], own.rnn_output.stack()[:, 1::2])


def test_scheduled_sampling_keeps_its_rate():
    rows, steps = 400, 10
    cell, embedding, project = torch.nn.GRUCell(E, H), torch.nn.Embedding(V + 1, E), torch.nn.Linear(H, V)
    fed = []
    targets = torch.full((steps, rows), V)  # a token that the model cannot draw
    look_up = lambda tokens: fed.append(tokens) or embedding(tokens)  # noqa: E731
    raw_rnn(cell, scheduled_sampling(look_up, project, targets, None, 0, torch.zeros(rows, H), probability=0.3, seed=3))
    own = torch.stack(fed[1:]) != V
    assert abs(own.double().mean() - 0.3) < 0.03


@pytest.mark.parametrize("lengths", [None, [3, 2, 1, 0, 9]])
def test_forced_prefix(model, lengths):
    prefix = torch.randint(2, V, (3, B))
    prefix[1, 0] = END  # forced, so it ends nothing
    loop_fn = forced_prefix(greedy(*model.parts, START, END, model.h, 7), prefix, None if lengths is None else torch.tensor(lengths))
    emits = model.run(loop_fn)
    for row, length in enumerate(lengths or [3] * B):
        tokens = greedy_by_hand(model, row, 7, prefix[: min(length, 3), row].tolist())
        assert emits.stack()[: emits.lengths[row], row].tolist() == tokens


def test_an_empty_prefix_forces_nothing(model):
    plain = greedy(*model.parts, START, END, model.h, 5)
    forced = forced_prefix(plain, torch.zeros(0, B, dtype=torch.int64))
    assert torch.equal(model.run(forced).stack(), model.run(plain).stack())


def test_a_prefix_within_the_bound_on_the_steps(model):
    emits = model.run(forced_prefix(greedy(*model.parts, START, END, model.h, 2), torch.full((4, B), 5)))
    assert emits.stack().tolist() == [[5] * B] * 2


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.7, "temperature": 2.0}]
)
def test_samples_follow_the_softmax(options):
    """Chi-square of 20,000 first tokens against the probabilities, worked out from their definitions."""
    rows = 20_000
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0])

    class Constant:
        output_size = state_size = 8

        def __call__(self, inputs, state):
            return logits.expand(rows, 8), state

    loop_fn = sample(torch.zeros(8, 1), None, 0, None, torch.zeros(rows, 8), 1, seed=5, **options)
    counts = torch.bincount(raw_rnn(Constant(), loop_fn)[0].stack()[0], minlength=8).double()
    scaled = logits.double() / options.get("temperature", 1.0)
    if "top_k" in options:
        scaled[options["top_k"] :] = -torch.inf  # they stand in descending order
    if "top_p" in options:
        probability = scaled.softmax(0)
        nucleus = int((probability.cumsum(0) < options["top_p"]).sum()) + 1
        scaled[nucleus:] = -torch.inf
    expected = scaled.softmax(0) * rows
    assert not counts[expected == 0].any()
    live = expected > 0
    assert ((counts - expected)[live].square() / expected[live]).sum() < 30  # 7 degrees of freedom: p < 1e-4


def test_the_same_seed_draws_the_same_tokens(model):
    def tokens(**options):
        return model.run(sample(*model.parts, START, None, model.h, 8, **options)).stack()

    assert torch.equal(tokens(seed=3), tokens(seed=3))
    assert not torch.equal(tokens(seed=3), tokens(seed=4))
    torch.manual_seed(1)
    first = tokens()
    assert not torch.equal(first, tokens())
    torch.manual_seed(1)
    assert torch.equal(first, tokens())


def test_a_row_draws_the_same_alone(model):
    seeds = torch.tensor([11, 12, 13, 14, 15])
    whole = model.run(sample(*model.parts, START, None, model.h, 6, seed=seeds)).stack()
    for row in range(B):
        alone = sample(*model.parts, START, None, model.h[row : row + 1], 6, seed=seeds[row : row + 1])
        assert torch.equal(model.run(alone).stack()[:, 0], whole[:, row])


def test_temperature_zero_is_greedy_row_by_row(model):
    heat = torch.tensor([0.0, 1.0, 0.0, 5.0, 0.0])
    drawn = model.run(sample(*model.parts, START, None, model.h, 6, temperature=heat, seed=2)).stack()
    best = model.run(greedy(*model.parts, START, None, model.h, 6)).stack()
    assert torch.equal(drawn[:, ::2], best[:, ::2])
    assert not torch.equal(drawn[:, 3], best[:, 3])
    assert torch.equal(model.run(sample(*model.parts, START, None, model.h, 6, top_k=1)).stack(), best)
    assert torch.equal(model.run(sample(*model.parts, START, None, model.h, 6, top_p=1e-6)).stack(), best)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda m: greedy(*m.parts, START, None, m.h), ValueError, "give end, max_steps or both"),
        (lambda m: greedy(*m.parts, 0.5, END, m.h), TypeError, r"start must hold integers, got float32\[\]"),
        (lambda m: greedy(*m.parts, torch.zeros(2, dtype=torch.int64), END, m.h), ValueError, r"B = 5 .* got shape \[2\]"),
        (lambda m: greedy(*m.parts, START, 1.0, m.h), TypeError, "end must be an int or None, got 1.0"),
        (lambda m: greedy(*m.parts, START, END, m.h, emit="all"), ValueError, "emit must be 'tokens', 'logits' or 'both', got 'all'"),
        (lambda m: greedy(3, m.project, START, END, m.h), TypeError, "embedding must be an nn.Embedding"),
        (lambda m: greedy(m.embedding, 3, START, END, m.h), TypeError, "project must be a function or None"),
        (lambda m: greedy(m.embedding, lambda o: o, START, END, m.h, emit="logits"), ValueError, "project must tell their number"),
        (lambda m: greedy(*m.parts, START, END, torch.zeros(())), ValueError, r"initial_state must hold a tensor \[B, ...\]"),
        (lambda m: sample(*m.parts, START, END, m.h, temperature=-1.0), ValueError, "temperature must not be negative"),
        (lambda m: sample(*m.parts, START, END, m.h, temperature=float("nan")), ValueError, "temperature must not be negative"),
        (lambda m: sample(*m.parts, START, END, m.h, top_k=1.5), TypeError, "top_k must be an int or None, got 1.5"),
        (lambda m: sample(*m.parts, START, END, m.h, seed=1.5), TypeError, "cannot be interpreted as an integer"),
        (lambda m: greedy(*m.parts, START, END, m.h, -1), ValueError, "max_steps must not be negative, got -1"),
        (
            lambda m: forced_prefix(teacher_forcing(*m.parts, torch.zeros(3, B).long(), None, START, m.h), torch.zeros(1, B).long()),
            ValueError,
            "put the prefix into the targets",
        ),
        (lambda m: sample(*m.parts, START, END, m.h, top_k=0), ValueError, "top_k must be at least 1, got 0"),
        (lambda m: sample(*m.parts, START, END, m.h, top_p=1.5), ValueError, r"top_p must lie in \(0, 1\], got 1.5"),
        (lambda m: teacher_forcing(*m.parts, torch.zeros(3), None, START, m.h), TypeError, r"targets must hold integers, got float32\[3\]"),
        (lambda m: forced_prefix(lambda *a: a, torch.zeros(1, B).long()), TypeError, "must come from a builder of fusedrnn.feedback"),
        (lambda m: forced_prefix(greedy(*m.parts, START, END, m.h), torch.zeros(1, 2).long()), ValueError, "B = 2, the loop_fn has 5 rows"),
    ],
)
def test_bad_arguments(model, make, kind, words):
    with pytest.raises(kind, match=words):
        make(model)


def test_bad_probability(model):
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got 1.2"):
        scheduled_sampling(*model.parts, torch.zeros(2, B).long(), None, START, model.h, probability=1.2)


def test_another_seed_makes_no_new_program(model):
    cache.clear()
    drawn = []
    with torch.no_grad():
        for seed in (1, 2, 2**64 - 1):
            loop_fn = sample(*model.parts, START, None, model.h, 6, seed=seed, emit="tokens")
            drawn.append(raw_rnn(model.cell, loop_fn, backend="stepwise").emit_ta.stack())
            assert cache.size() == 1
            assert drawn[-1].equal(raw_rnn(model.cell, loop_fn, backend="reference").emit_ta.stack())
    assert not drawn[0].equal(drawn[1])
