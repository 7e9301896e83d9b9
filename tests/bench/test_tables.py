"""Tables, of results that a test makes up."""

import pytest

from bench import tables


def row(case, peer, ratios, **shape):
    ours = 0.001
    middle = sorted(ratios)[len(ratios) // 2]
    unit = "tokens/s" if case == "decode" else "us/step"
    times = {"fusedrnn_median_seconds": ours, "peer_median_seconds": ours * middle, "ratio": middle, "ratios": ratios}
    return {"case": case, "shape": shape, "peer": peer, "unit": unit, "count": 10} | times


READS = {"cell": "lstm", "H": 8, "B": 1, "T": 10, "dtype": "float32"}
ROWS = {
    "machine": [],
    "sequence": [
        row("sequence", "nn.LSTM", [2.0, 1.5, 3.0], **READS),
        row("sequence", "JAX", [0.5, 0.8, 0.9], **READS),
        row("sequence", "nn.LSTM", [1.2, 1.1, 1.3], **READS | {"B": 2}),
        {"case": "sequence", "shape": READS, "peer": "wrong", "fault": "it differs"},
    ],
    "g2p": [row("g2p", "itself", [0.9, 0.9, 0.9], words=10, B=1, order="sorted")],
    "growth": [{"case": "growth", "axis": "T", "who": "fusedrnn", "values": [8, 32], "seconds": [1.0, 4.0], "exponent": 1.0}],
} | {name: [] for name in ("layer_norm", "custom", "ragged", "decode", "training")}
ABOUT = {
    "machine": {"cpu": "A CPU", "cpus": 2, "threads": 1, "load": [0.5, 0, 0]}, "load_after": [1.5, 0, 0], "versions": {"torch": "2.13.0"},
    "date": "2026-11-28T00:00:00", "commit": "0123456789", "command": "python -m bench cpu",
}  # fmt: skip


def result(**changes):
    return {"parts": {name: ABOUT | {"rows": some} for name, some in (ROWS | changes).items()}}


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setattr(tables, "result", lambda name: result())


def test_a_line_for_each_shape_and_a_column_for_each_peer():
    assert tables.against("sequence").splitlines() == [
        "| | fusedrnn us/step | nn.LSTM | JAX |",
        "|---|---|---|---|",
        "| lstm H=8 B=1 T=10 float32 | 100 | 2.00 (1.50 to 3.00) | 0.80 (0.50 to 0.90) |",
        "| lstm H=8 B=2 T=10 float32 | 100 | 1.20 (1.10 to 1.30) | |",
    ]


def test_wins_are_against_the_fastest_peer_and_losses_are_all():
    assert tables.wins().splitlines()[2:] == [
        "| sequence | lstm H=8 B=2 T=10 float32 | nn.LSTM | 100 us/step | 120 us/step | 1.20 (1.10 to 1.30) | |"
    ]
    assert tables.ties().splitlines()[2:] == []
    assert tables.losses().splitlines()[2:] == [
        "| sequence | lstm H=8 B=1 T=10 float32 | JAX | 100 us/step | 80.0 us/step | 0.80 (0.50 to 0.90) | |"
    ]


def kept(how, steps, mebibytes):
    return {"case": "memory", "how": how, "H": 8, "B": 2, "T": steps, "bytes": mebibytes * 2**20}


def test_who_keeps_less_in_training_is_a_loss(monkeypatch):
    peaks = [kept("native", 64, 100), kept("nn.LSTM", 64, 75), kept("the cell in a loop", 64, 120), kept("native, checkpoints", 64, 10)]
    failed = {"case": "memory", "how": "native", "H": 8, "B": 2, "T": 256, "error": "killed"}
    line = "MiB that a step of training keeps, where a peer keeps less than the native loop: {}."
    for memory, said in {
        "nn.LSTM 75 at H=8 B=2 T=64 (native 100)": [*peaks, failed, kept("nn.LSTM", 256, 1)],
        "nowhere": [peaks[0], peaks[2]],
    }.items():
        monkeypatch.setattr(tables, "result", lambda name, rows=said: result(memory=rows))
        assert tables.losses().splitlines()[-2:] == ["", line.format(memory)]


def test_not_every_pair_won_is_neither(monkeypatch):
    close = [row("sequence", "nn.LSTM", [1.2, 0.9, 1.3], **READS)]
    monkeypatch.setattr(tables, "result", lambda name: result(sequence=close))
    assert [len(make().splitlines()) for make in (tables.wins, tables.ties, tables.losses)] == [2, 3, 2]


def test_distances_to_the_floor_stand_where_the_machine_has_constants(monkeypatch):
    machine = {"case": "machine", "sigmoids_per_us": 1.0, "multiply_adds_per_us": {"float32": 1e9}, "bytes_per_us": {"1": 1e9}}
    monkeypatch.setattr(tables, "result", lambda name: result(machine=[machine]))
    assert tables.losses().splitlines()[-1].endswith("| 0.80 (0.50 to 0.90) | 2.5 / 2.0 |")  # five sigmoids of eight units: 40 us


def test_growth():
    assert tables.growth().splitlines()[2:] == ["| T from 8 to 32 | fusedrnn | 1.00 |"]


def test_growth_tells_how_far_times_are_off_the_power(monkeypatch):
    rows = [ROWS["growth"][0] | {"off": 1.234}]
    monkeypatch.setattr(tables, "result", lambda name: result(growth=rows))
    assert tables.growth().splitlines()[2:] == ["| T from 8 to 32 | fusedrnn | 1.00 (off by 1.23 at most) |"]


ONE = "A CPU, 2 CPUs, 1 thread, load 0.5 to 1.5; torch 2.13.0; 2026-11-28, commit 0123456; `python -m bench cpu --only %s`"


def test_every_figure_has_its_machine_and_command():
    assert tables.source("sequence", "g2p") == f"<sub>{ONE % 'sequence g2p'}: [cpu2.json](bench/results/cpu2.json)</sub>"
    for name in ("sequence", "growth"):
        assert tables.TABLES[name]().endswith(tables.source(name))
    for name in ("wins", "ties", "losses"):
        assert tables.TABLES[name]().endswith(tables.source("g2p", "sequence", "layer_norm", "custom", "ragged", "decode", "training"))


def test_parts_of_several_runs_tell_each(monkeypatch):
    made = result()
    made["parts"]["g2p"] |= {"command": "python -m bench cpu --only g2p"}
    monkeypatch.setattr(tables, "result", lambda name: made)
    both = f"{ONE % 'sequence growth'}<br>{ONE % 'g2p'}"
    assert tables.source("sequence", "growth", "g2p") == f"<sub>{both}: [cpu2.json](bench/results/cpu2.json)</sub>"


@pytest.mark.parametrize(
    ("recorded", "parts", "told"),
    [
        ("python -m bench cpu --threads 1 --tensorflow /a/b --json c.json", ["g2p"], "--threads 1 --tensorflow PYTHON --only g2p"),
        ("python -m bench cpu --only g2p decode --pairs 5 --json c.json --update", ["decode"], "--pairs 5 --only decode"),
        ("python -m bench cpu --set H=1 T=2", ["ragged", "custom"], "--set H=1 T=2 --only ragged custom"),
    ],
)
def test_a_table_tells_the_command_that_measures_it_alone(recorded, parts, told):
    assert tables.alone(recorded, parts) == f"python -m bench cpu {told}"
