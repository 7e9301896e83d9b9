"""TensorFlow's cells on fixed inputs. Out: cells.npz beside this file: their variables, inputs, outputs, states and gradients, float64.

Run by hand, in an environment of its own (TensorFlow is no dependency of fusedrnn; the attention classes are TensorFlow Addons', of which
only the Python files are needed):

    python -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.0 tf-keras==2.21.0 packaging
    /tmp/tf/bin/pip install --no-deps tensorflow-addons==0.23.0 'typeguard<3'
    /tmp/tf/bin/python tests/golden/record_cells.py

To add a case: a line in CASES, and a test in tests/cells that reads it. Each case runs T steps from a random state; ``case/d_inputs``
is the gradient of ``sum(outputs * loss_weights)`` by the inputs.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="", TF_ENABLE_ONEDNN_OPTS="0")

import numpy as np
import tensorflow as tf
import tf_keras

# Addons 0.23 asks for the keras that tf-keras is now.
sys.modules.update({name.replace("tf_keras", "keras", 1): module for name, module in sys.modules.items() if name.startswith("tf_keras")})
from tensorflow_addons.seq2seq import attention_wrapper as addons  # noqa: E402

tf_keras.backend.set_floatx("float64")
cells = tf.compat.v1.nn.rnn_cell
keras = tf_keras.layers

T, B, D, H, P = 3, 2, 3, 4, 2
S, M, U, A = 4, 5, 6, 3  # memory positions and width, attention units, attention size

CASES = {
    "basic": lambda: cells.BasicRNNCell(H),
    "gru": lambda: cells.GRUCell(H),
    "lstm": lambda: cells.LSTMCell(H),
    "lstm_basic": lambda: cells.BasicLSTMCell(H, forget_bias=0.5),
    "lstm_peepholes": lambda: cells.LSTMCell(H, use_peepholes=True),
    "lstm_cell_clip": lambda: cells.LSTMCell(H, cell_clip=0.3),
    "lstm_projection": lambda: cells.LSTMCell(H, num_proj=P),
    "lstm_proj_clip": lambda: cells.LSTMCell(H, num_proj=P, proj_clip=0.1),
    "lstm_relu": lambda: cells.LSTMCell(H, activation=tf.nn.relu),
    "lstm_all": lambda: cells.LSTMCell(H, use_peepholes=True, cell_clip=0.3, num_proj=P, proj_clip=0.1, forget_bias=2.0),
    "stack": lambda: cells.MultiRNNCell([cells.LSTMCell(H), cells.GRUCell(P)]),
    "residual": lambda: cells.ResidualWrapper(cells.GRUCell(D)),
    "keras_simple": lambda: keras.SimpleRNNCell(H),
    "keras_lstm": lambda: keras.LSTMCell(H),
    "keras_gru_after": lambda: keras.GRUCell(H, reset_after=True),
    "keras_gru_before": lambda: keras.GRUCell(H, reset_after=False),
}
ATTENTION = {
    "bahdanau": (addons.BahdanauAttention, {"units": U}, {}),
    "bahdanau_normalize": (addons.BahdanauAttention, {"units": U, "normalize": True}, {"attention_layer_size": A}),
    "luong": (addons.LuongAttention, {"units": H}, {"attention_layer_size": A, "output_attention": False}),
    "luong_scale": (addons.LuongAttention, {"units": H, "scale": True}, {}),
}


def loss_weights(shape):
    return np.cos(np.arange(np.prod(shape))).reshape(shape)


def randomised(variables, rng):
    """The variables by name, without the names of cells, each set to random values first: zeros would hide an order of gates."""
    for variable in variables:
        variable.assign(rng.normal(size=variable.shape))
    return {re.sub(r"[a-z_]+_cell(_\d+)?/|:0", "", variable.name): variable.numpy() for variable in variables}


def run(call, state, inputs):
    """The stacked outputs, the last state and the gradient of the inputs."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = []
        for x in tf.unstack(inputs):
            output, state = call(x, state)
            outputs.append(output)
        outputs = tf.stack(outputs)
        loss = tf.reduce_sum(outputs * loss_weights(outputs.shape))
    return outputs, state, tape.gradient(loss, inputs)


def record(case, recorded, variables, initial, outputs, state, gradient, inputs):
    recorded.update({f"{case}/variables/{name}": value for name, value in variables.items()})
    for part, tree in (("initial", initial), ("final", state)):
        for i, leaf in enumerate(tf.nest.flatten(tree)):
            recorded[f"{case}/{part}/{i}"] = np.asarray(leaf)
    recorded.update({f"{case}/inputs": inputs.numpy(), f"{case}/outputs": outputs.numpy(), f"{case}/d_inputs": gradient.numpy()})


def record_cell(case, build, recorded, rng):
    cell = build()
    inputs = tf.constant(rng.normal(size=(T, B, D)))
    initial = tf.nest.map_structure(lambda size: tf.constant(rng.normal(size=(B, size))), cell.state_size)
    cell(inputs[0], initial)
    variables = randomised(getattr(cell, "cell", cell).trainable_variables, rng)
    record(case, recorded, variables, initial, *run(cell, initial, inputs), inputs)


def record_attention(case, mechanism_class, mechanism_options, wrapper_options, recorded, rng):
    memory, lengths = tf.constant(rng.normal(size=(B, S, M))), [2, 4]
    mechanism = mechanism_class(memory=memory, memory_sequence_length=lengths, dtype=tf.float64, name="mechanism", **mechanism_options)
    cell = cells.GRUCell(H, dtype=tf.float64)
    wrapper = addons.AttentionWrapper(cell, mechanism, dtype=tf.float64, name="wrapper", **wrapper_options)
    inputs = tf.constant(rng.normal(size=(T, B, D)))
    wrapper(inputs[0], wrapper.get_initial_state(batch_size=B, dtype=tf.float64))
    variables = randomised({v.ref(): v for v in wrapper.variables + mechanism.variables}.values(), rng)
    mechanism.setup_memory(memory, memory_sequence_length=lengths)  # the keys again, with the variables as they are now
    initial = wrapper.get_initial_state(batch_size=B, dtype=tf.float64)
    outputs, state, gradient = run(wrapper, initial, inputs)
    state = (state.cell_state, state.attention, state.alignments)
    recorded.update({f"{case}/memory": memory.numpy(), f"{case}/lengths": np.array(lengths)})
    record(case, recorded, variables, (), outputs, state, gradient, inputs)


def main():
    rng, recorded = np.random.default_rng(0), {}
    for case, build in CASES.items():
        record_cell(case, build, recorded, rng)
    for case, (mechanism_class, mechanism_options, wrapper_options) in ATTENTION.items():
        record_attention(case, mechanism_class, mechanism_options, wrapper_options, recorded, rng)
    np.savez_compressed(Path(__file__).with_name("cells.npz"), **recorded)
    print(f"{len(recorded)} arrays of {len(CASES) + len(ATTENTION)} cases")


main()
