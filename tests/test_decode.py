"""dynamic_decode: TensorFlow's meaning of finished, lengths and imputing, on decoders written by hand."""

import pytest
import torch

from fusedrnn import dynamic_decode, feedback, raw_rnn

B, H = 3, 2


class Counter:
    """Counts up; row b says it is finished at step ``ends[b]``, and only then."""

    def __init__(self, ends, first=False):
        self.output_size = {"count": H, "time": torch.Size(())}
        self.output_dtype = {"count": torch.float32, "time": torch.int32}
        self.ends, self.first, self.steps = torch.tensor(ends), first, 0

    def initialize(self):
        return torch.full((B,), self.first), torch.ones(B, H), torch.zeros(B, H)

    def step(self, time, inputs, state):
        assert time.dtype == torch.int32
        assert time.shape == ()
        assert time == self.steps
        self.steps += 1
        state = state + inputs
        return {"time": time.expand(B), "count": state}, state, inputs, time >= self.ends


class Unfinishing(Counter):
    tracks_own_finished = True

    def step(self, time, inputs, state):
        outputs, state, inputs, _ = super().step(time, inputs, state)
        return outputs, state, inputs, (time == self.ends) | (time >= 4)


@pytest.mark.parametrize("time_major", [False, True])
def test_lengths_include_the_end_step(time_major):
    outputs, state, lengths = dynamic_decode(Counter([0, 1, 3]), output_time_major=time_major)
    assert lengths.tolist() == [1, 2, 4]
    assert lengths.dtype == torch.int32
    count = outputs["count"] if time_major else outputs["count"].transpose(0, 1)
    assert count.shape == (4, B, H)
    # Nothing is imputed: rows go on after their end.
    assert torch.equal(count[:, :, 0], torch.arange(1.0, 5)[:, None].expand(4, B))
    assert torch.equal(state, torch.full((B, H), 4.0))


def test_imputing_zeroes_outputs_and_freezes_states():
    outputs, state, lengths = dynamic_decode(Counter([0, 1, 3]), True, True)
    assert lengths.tolist() == [1, 2, 4]
    assert outputs["count"][:, :, 0].tolist() == [[1, 1, 1], [0, 2, 2], [0, 0, 3], [0, 0, 4]]
    assert outputs["time"].tolist() == [[0, 0, 0], [0, 1, 1], [0, 0, 2], [0, 0, 3]]
    assert state[:, 0].tolist() == [1, 2, 4]


@pytest.mark.parametrize("limit", [0, 1, 3, torch.tensor(3)])
def test_maximum_iterations(limit):
    outputs, _, lengths = dynamic_decode(Counter([0, 9, 9]), maximum_iterations=limit)
    assert outputs["count"].shape == (B, int(limit), H)
    assert lengths.tolist() == [min(1, int(limit)), int(limit), int(limit)]


def test_finished_from_the_start():
    outputs, state, lengths = dynamic_decode(Counter([5, 5, 5], first=True))
    assert outputs["count"].shape == (B, 0, H)
    assert outputs["time"].dtype == torch.int32
    assert lengths.tolist() == [0, 0, 0]
    assert not state.any()


def test_a_decoder_may_track_its_own_finished_rows():
    _, _, lengths = dynamic_decode(Unfinishing([0, 1, 3]))
    assert lengths.tolist() == [5, 5, 4]  # row 2 was finished before the last step
    with pytest.raises(ValueError, match="impute_finished freezes finished rows for good"):
        dynamic_decode(Unfinishing([0, 1, 3]), impute_finished=True)


@pytest.mark.parametrize(("finished", "kind"), [(torch.tensor([False]), ValueError), (torch.zeros(B, dtype=torch.int64), TypeError)])
def test_finished_is_checked_as_in_raw_rnn(finished, kind):
    class Bad(Counter):
        def initialize(self):
            return finished, torch.ones(B, H), torch.zeros(B, H)

    with pytest.raises(kind, match="finished must"):
        dynamic_decode(Bad([1, 1, 1]))


def test_a_finalize_that_is_not_implemented():
    class Base(Counter):
        def finalize(self, outputs, state, lengths):
            raise NotImplementedError

    assert dynamic_decode(Base([0, 1, 3]))[0]["count"].shape == (B, 4, H)


def test_finalize_gets_time_major_outputs():
    class Finalizing(Counter):
        def finalize(self, outputs, state, lengths):
            assert outputs["count"].shape == (4, B, H)
            return {"last": outputs["count"][-1:]}, (state, lengths)

    outputs, (_, inner), lengths = dynamic_decode(Finalizing([0, 1, 3]))
    assert outputs["last"].shape == (B, 1, H)
    assert inner is lengths


def test_a_read_past_the_end_inside_a_decoder():
    x = torch.randn(3, B, H)

    class Reading(Counter):
        def step(self, time, inputs, state):
            outputs, state, _, finished = super().step(time, inputs, state)
            return outputs, state, x[time + 1], finished

    assert dynamic_decode(Reading([2, 2, 2]))[2].tolist() == [3, 3, 3]
    with pytest.raises(IndexError, match="past its end"):
        dynamic_decode(Reading([3, 3, 3]))


@pytest.mark.parametrize(
    ("decoder", "options", "kind", "words"),
    [
        (object(), {}, TypeError, "object lacks initialize, step, output_size, output_dtype"),
        (Counter([1, 1, 1]), {"maximum_iterations": -1}, ValueError, "maximum_iterations must not be negative, got -1"),
        (Counter([1, 1, 1]), {"maximum_iterations": 1.5}, TypeError, "maximum_iterations must be an int or None, got 1.5"),
    ],
)
def test_bad_arguments(decoder, options, kind, words):
    with pytest.raises(kind, match=words):
        dynamic_decode(decoder, **options)


def test_basic_decoder_is_its_loop_fn():
    cell, embedding, project = torch.nn.GRUCell(4, 5), torch.nn.Embedding(7, 4), torch.nn.Linear(5, 7)
    loop_fn = feedback.greedy(embedding, project, 1, 3, torch.randn(B, 5), 9, emit="both")
    outputs, _, lengths = dynamic_decode(feedback.BasicDecoder(cell, loop_fn), impute_finished=True)
    emits, _, _ = raw_rnn(cell, loop_fn)
    assert isinstance(outputs, feedback.BasicDecoderOutput)
    assert torch.equal(outputs.sample_id, emits.sample_id.stack().T)
    assert torch.equal(outputs.rnn_output, emits.rnn_output.stack().transpose(0, 1))
    assert torch.equal(lengths, emits.sample_id.lengths)


def test_basic_decoder_refuses_what_it_cannot_carry():
    zeros = torch.zeros(B, H)
    with pytest.raises(ValueError, match="without loop_state"):
        feedback.BasicDecoder(torch.nn.GRUCell(H, H), lambda t, o, s, ls: (True, zeros, zeros, zeros[0], 0))
    with pytest.raises(ValueError, match="needs the example emit at time 0"):
        feedback.BasicDecoder(torch.nn.GRUCell(H, H), lambda t, o, s, ls: (True, zeros, zeros, None, None))
