"""The same model in TensorFlow's raw_rnn, run by a Python that has tensorflow and tf-keras: a peer that works on request.

Reads one JSON line with the weights' file, the batches and the last token; then, for each line "run", decodes all batches and prints a JSON
line with the seconds, and the tokens the first time.
"""

import json
import os
import sys
import time

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import tensorflow as tf


class GRU(tf.compat.v1.nn.rnn_cell.RNNCell):
    """torch's GRU cell."""

    def __init__(self, w_ih, w_hh, b_ih, b_hh):
        super().__init__()
        self.w_ih, self.w_hh = tf.constant(w_ih.T), tf.constant(w_hh.T)
        self.b_ih, self.b_hh, self.units = tf.constant(b_ih), tf.constant(b_hh), w_hh.shape[1]

    state_size = property(lambda self: self.units)
    output_size = property(lambda self: self.units)

    def call(self, inputs, state):
        ir, iz, ig = tf.split(tf.matmul(inputs, self.w_ih) + self.b_ih, 3, 1)
        hr, hz, hg = tf.split(tf.matmul(state, self.w_hh) + self.b_hh, 3, 1)
        r, z = tf.sigmoid(ir + hr), tf.sigmoid(iz + hz)
        n = tf.tanh(ig + r * hg)
        new = n + z * (state - n)
        return new, new


def build(arrays, start, end, most):
    encoder, decoder = (GRU(*[arrays[f"{part}_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]) for part in ("enc", "dec"))
    enc_emb, dec_emb = tf.constant(arrays["enc_emb"]), tf.constant(arrays["dec_emb"])
    fc_w, fc_b = tf.constant(arrays["fc_w"].T), tf.constant(arrays["fc_b"])
    raw_rnn = tf.compat.v1.nn.raw_rnn

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None], tf.int32)])
    def decode(graphemes, lengths):
        batch, steps = tf.shape(lengths)[0], tf.shape(graphemes)[0]
        inputs = tf.TensorArray(tf.float32, steps).unstack(tf.gather(enc_emb, graphemes))

        def encode_fn(time, output, state, loop_state):
            finished = time >= lengths
            state = tf.zeros([batch, encoder.units]) if output is None else state
            read = tf.cond(tf.reduce_all(finished), lambda: tf.zeros([batch, enc_emb.shape[1]]), lambda: inputs.read(time))
            read.set_shape([None, enc_emb.shape[1]])
            return finished, read, state, output, None

        _, encoded, _ = raw_rnn(encoder, encode_fn)

        def decode_fn(time, output, state, loop_state):
            if output is None:
                first = tf.tile(dec_emb[start][None], [batch, 1])
                return tf.zeros([batch], tf.bool), first, encoded, tf.zeros([], tf.int64), None
            token = tf.argmax(tf.matmul(output, fc_w) + fc_b, -1)
            return (token == end) | (time >= most), tf.gather(dec_emb, token), state, token, None

        tokens, _, _ = raw_rnn(decoder, decode_fn)
        return tokens.stack()

    return decode


def main():
    work = json.loads(sys.stdin.readline())
    tf.config.threading.set_intra_op_parallelism_threads(work["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with np.load(work["weights"]) as file:
        arrays = {name: file[name] for name in file.files}
    batches = [(np.asarray(graphemes), np.asarray(lengths, np.int32)) for graphemes, lengths in work["batches"]]
    decode = build(arrays, work["start"], work["end"], work["most"])
    told = False
    for line in sys.stdin:
        if line.strip() != "run":
            break
        began = time.perf_counter()
        tokens = [decode(tf.constant(graphemes), tf.constant(lengths)).numpy() for graphemes, lengths in batches]
        seconds = time.perf_counter() - began
        print(
            json.dumps({"seconds": seconds, "tokens": None if told else [t.tolist() for t in tokens], "version": tf.__version__}),
            flush=True,
        )
        told = True


if __name__ == "__main__":
    main()
