"""Beam search against the exhaustive search over all sequences, and against itself."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedrnn import dynamic_decode, raw_rnn
from fusedrnn.feedback import BeamSearchDecoder, greedy, tile_beams

pytestmark = pytest.mark.usefixtures("float64")
V, E, H, B, START, END = 4, 3, 5, 2, 0, 1


class Model:
    def __init__(self, seed, sharp=2.0):
        torch.manual_seed(seed)
        self.cell, self.embedding, self.project = torch.nn.GRUCell(E, H), torch.nn.Embedding(V, E), torch.nn.Linear(H, V)
        for parameter in (*self.cell.parameters(), *self.project.parameters()):
            parameter.data.mul_(sharp)
        self.h = torch.randn(B, H)

    def search(self, width, steps, **options):
        decoder = BeamSearchDecoder(
            self.cell, self.embedding, self.project, START, END, self.h, beam_width=width, max_steps=steps, **options
        )
        with torch.no_grad():
            return dynamic_decode(decoder)

    def all_sequences(self, row, steps):
        """Every sequence that ends with END or has ``steps`` tokens, with its log probability."""

        def longer(h, last, tokens, log_prob):
            if len(tokens) == steps or (tokens and tokens[-1] == END):
                yield tokens, log_prob
                return
            h = self.cell(self.embedding(torch.tensor([last])), h)
            gains = self.project(h).log_softmax(-1)[0].tolist()
            for token, gain in enumerate(gains):
                yield from longer(h, token, (*tokens, token), log_prob + gain)

        with torch.no_grad():
            return list(longer(self.h[row : row + 1], START, (), 0.0))


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.6, 1.0, 2.5, -0.5]), st.integers(1, 4))
def test_a_wide_beam_finds_what_exhaustive_search_finds(seed, alpha, steps):
    model = Model(seed)
    outputs, state, _ = model.search(V**steps, steps, length_penalty=alpha, n_best=3)
    for row in range(B):
        ranked = sorted(((lp / penalty(len(seq), alpha), seq) for seq, lp in model.all_sequences(row, steps)), reverse=True)
        for place, (score, sequence) in enumerate(ranked[:3]):
            length = state.ended_lengths[row, place]
            assert state.ended_scores[row, place].item() == pytest.approx(score, abs=1e-10)
            assert tuple(outputs.tokens[row, :length, place].tolist()) == sequence
            assert (outputs.tokens[row, length:, place] == END).all()
            assert state.by_end[row, place] == (sequence[-1] == END)


@pytest.mark.slow
@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0, -0.5]), st.integers(1, 5))
def test_it_stops_early_only_when_nothing_can_change(seed, alpha, width):
    """A row decoded together with a row that runs to the last step gives what it gives alone."""
    model = Model(seed, sharp=4.0)
    outputs, state, _ = model.search(width, 8, length_penalty=alpha, n_best=width)
    h = model.h
    for row in range(B):
        model.h = h[row : row + 1]
        alone, alone_state, _ = model.search(width, 8, length_penalty=alpha, n_best=width)
        steps = alone.tokens.shape[1]
        assert torch.equal(alone.tokens[0], outputs.tokens[row, :steps])
        torch.testing.assert_close(alone_state.ended_scores[0], state.ended_scores[row])
        assert (outputs.tokens[row, steps:] == END).all()


def test_the_first_ended_hypothesis_is_not_the_best():
    """Ending at once has probability 0.4; token 2 has 0.35 and then ends for sure; token 3 has 0.25. With a length penalty
    the longer one wins: a search that stops when the first hypothesis ends would miss it."""
    gains = torch.log(torch.tensor([[1e-9, 0.4, 0.35, 0.25], [1e-9, 1e-9, 1e-9, 1.0], [1e-9, 1.0, 1e-9, 1e-9], [0.25] * 4]))

    class Table:
        output_size = V
        state_size = 1

        def __call__(self, token, state):
            return gains[token[:, 0].long()], state

    decoder = BeamSearchDecoder(
        Table(), lambda t: t[:, None].double(), None, 0, END, torch.zeros(1, 1), beam_width=3, max_steps=6, length_penalty=3.0, n_best=2
    )
    outputs, state, _ = dynamic_decode(decoder)
    assert outputs.tokens[0, :2, 0].tolist() == [2, END]
    assert outputs.tokens[0, 0, 1] == END
    assert state.by_end.all()


@given(st.integers(0, 300))
def test_width_one_without_penalty_is_greedy(seed):
    model = Model(seed)
    outputs, state, lengths = model.search(1, 6)
    emits = raw_rnn(model.cell, greedy(model.embedding, model.project, START, END, model.h, 6))[0]
    assert torch.equal(lengths, emits.lengths)
    assert torch.equal(state.ended_lengths[:, 0], emits.lengths.long())
    for row, length in enumerate(lengths):
        assert torch.equal(outputs.tokens[row, :length, 0], emits.stack()[:length, row])


def test_lstm_states_and_attention_memories_follow_their_beams():
    memory = torch.randn(B, 3, H)

    class Attending(torch.nn.Module):
        output_size = H
        state_size = (H, H)

        def __init__(self, memory):
            super().__init__()
            self.cell, self.memory = torch.nn.LSTMCell(E, H), memory

        def forward(self, inputs, state):
            h, c = self.cell(inputs, state)
            return h + torch.einsum("bsh,bs->bh", self.memory, torch.einsum("bsh,bh->bs", self.memory, h).softmax(-1)), (h, c)

    model = Model(5)
    state = (torch.randn(B, H), torch.randn(B, H))

    def search(rows):
        torch.manual_seed(1)
        cell = Attending(tile_beams(memory[rows], 3))
        start = tuple(leaf[rows] for leaf in state)
        decoder = BeamSearchDecoder(cell, model.embedding, model.project, START, END, start, beam_width=3, max_steps=5, n_best=3)
        with torch.no_grad():
            return dynamic_decode(decoder)

    whole, whole_state, _ = search(slice(None))
    for row in range(B):
        alone, alone_state, _ = search(slice(row, row + 1))
        assert torch.equal(alone.tokens[0], whole.tokens[row, : alone.tokens.shape[1]])
        assert alone_state.cell_state[0].shape == (1, 3, H)
    # Each sequence's probability is what the model says of it.
    for row, place in itertools.product(range(B), range(3)):
        torch.manual_seed(1)
        cell = Attending(memory[row : row + 1])
        held, last, total = tuple(leaf[row : row + 1] for leaf in state), START, 0.0
        for token in whole.tokens[row, : whole_state.ended_lengths[row, place], place].tolist():
            out, held = cell(model.embedding(torch.tensor([last])), held)
            total += model.project(out).log_softmax(-1)[0, token].item()
            last = token
        assert total == pytest.approx(whole_state.ended_log_probs[row, place].item(), abs=1e-10)


@pytest.mark.parametrize("time_major", [False, True])
def test_shapes(time_major):
    model = Model(0)
    decoder = BeamSearchDecoder(model.cell, model.embedding, model.project, START, END, model.h, beam_width=3, max_steps=4, n_best=2)
    outputs, state, lengths = dynamic_decode(decoder, output_time_major=time_major)
    steps = outputs.tokens.shape[0 if time_major else 1]
    assert outputs.tokens.shape == ((steps, B, 2) if time_major else (B, steps, 2))
    assert state.ended_scores.shape == (B, 2)
    assert lengths.shape == (B,)


@given(st.integers(0, 200), st.integers(1, 4))
def test_maximum_iterations_cuts_as_max_steps_does(seed, steps):
    model = Model(seed)
    shorter, state, _ = model.search(2, steps, n_best=2)
    decoder = BeamSearchDecoder(model.cell, model.embedding, model.project, START, END, model.h, beam_width=2, max_steps=9, n_best=2)
    with torch.no_grad():
        cut, cut_state, _ = dynamic_decode(decoder, maximum_iterations=steps)
    torch.testing.assert_close(cut_state.ended_scores, state.ended_scores)
    assert torch.equal(cut.tokens[:, : shorter.tokens.shape[1]], shorter.tokens)


def test_forbidden_continuations():
    """After token 2 every continuation is forbidden, after token 3 only the end is allowed."""
    no = -torch.inf
    gains = torch.tensor([[no, no, 3.0, 1.0], [0.0] * 4, [no] * 4, [no, 0.0, no, no]])

    class Table:
        output_size, state_size = V, 1

        def __call__(self, token, state):
            return gains[token[:, 0].long()], state

    decoder = BeamSearchDecoder(
        Table(), lambda t: t[:, None].double(), None, 0, END, torch.zeros(1, 1), beam_width=2, max_steps=4, n_best=2
    )
    outputs, state, _ = dynamic_decode(decoder)
    assert outputs.tokens[0, :2, 0].tolist() == [3, END]
    assert torch.isfinite(state.ended_scores[0, 0])
    assert torch.isneginf(state.ended_scores[0, 1])


def test_no_steps():
    outputs, state, _ = Model(0).search(3, 0, n_best=2)
    assert outputs.tokens.shape == (B, 0, 2)
    assert torch.isinf(state.ended_scores).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beam_width": 0}, "beam_width must be at least 1"),
        ({"max_steps": -1}, "max_steps not negative"),
        ({"n_best": 4}, "n_best must lie between 1 and beam_width = 3, got 4"),
        ({"n_best": 0}, "n_best must lie between 1 and beam_width = 3, got 0"),
        ({"length_penalty": float("nan")}, "length_penalty must be finite"),
        ({"end": -1}, "end must not be negative, got -1"),
    ],
)
def test_bad_arguments(change, words):
    model = Model(0)
    with pytest.raises(ValueError, match=words):
        BeamSearchDecoder(
            model.cell, model.embedding, model.project, START, initial_state=model.h,
            **{"end": END, "beam_width": 3, "max_steps": 4, "n_best": 1, **change},
        )  # fmt: skip


def test_tile_beams():
    assert tile_beams({"x": torch.tensor([1, 2])}, 2)["x"].tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="beam_width must be at least 1, got 0"):
        tile_beams(torch.zeros(2), 0)


def test_an_end_token_beyond_the_logits():
    model = Model(0)
    with pytest.raises(ValueError, match="end is 99, the logits have 4 tokens"):
        dynamic_decode(BeamSearchDecoder(model.cell, model.embedding, model.project, START, 99, model.h, beam_width=2, max_steps=3))
    with pytest.raises(TypeError, match="max_steps must be an int"):
        BeamSearchDecoder(model.cell, model.embedding, model.project, START, END, model.h, beam_width=2, max_steps=2.5)
