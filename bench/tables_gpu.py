"""Tables of `bench gpu`. In: the lines that it wrote; out: Markdown: what is wrong first, then figures, each with its machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .case import text
from .floor_gpu import Row
from .gpu_rows import Found, Pair, case_of, pairs, read, shape_of
from .tables import number, table

OURS = ("stepwise", "reference")  # fusedrnn's other backends, which are peers of a decode too
_SEQUENCES = ("sequence", "tables", "peers")
_EMULATED = (
    "**EMULATED on a CPU: no GPU has given any figure of this table.** It shows that everything runs to its end; its times, ratios and "
    "rates say nothing about a GPU."
)


def markdown(path: Path) -> str:
    """All tables of a file; those are left out that it has no rows for.

    Raises:
        LookupError: it is not what `bench gpu` wrote.
    """
    found = read(path)
    made = {
        "What is wrong": wrong(found),
        "Correctness": correctness(found),
        "Barrier": barrier(found),
        "Constants": constants(found),
        "Sequences": sequences(found),
        "Greedy decoding": decode(found),
        "One decode, profiled": timeline(found),
        "What fusedrnn loses": losses(found),
        "What has no figure": missing(found),
    }
    mark, about = (" (emulated)", f"{_EMULATED}\n\n") if found.emulated else ("", "")
    below = source(found, path)
    return "\n\n".join(f"### {title}{mark}\n\n{about}{body}\n\n{below}" for title, body in made.items() if body) + "\n"


def source(found: Found, path: Path) -> str:
    """The machine, versions, commit and command of each run, a line each."""
    lines = []
    for row in found.machines:
        device = row.get("device")
        where = (
            f"{device['name']} (sm_{device['capability'].replace('.', '')}, {device['sms']} multiprocessors), CUDA {device['cuda']}, "
            f"cuDNN {device['cudnn']}"
            if device
            else f"EMULATED, no GPU: {row['machine']['cpu'].strip()}"
        )
        versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "triton", "fusedrnn") if name in row["versions"])
        changed = " with changes" if row.get("uncommitted_changes") else ""
        lines.append(f"{where}; {versions}; {row['date'][:10]}, commit {row['commit'][:7]}{changed}; `{row['command']}`")
    if found.elsewhere:
        lines.append(f"{found.elsewhere} rows of other devices in the file are left out")
    return f"<sub>{'<br>'.join(lines)}: {path.name}</sub>"


def wrong(found: Found) -> str:
    """Every fault, and every case of correctness that gave nothing; one sentence where there is none."""
    lines = [f"- {case_of(row)}: {fault}" for row in found.rows for fault in row.get("faults", [])]
    lines += [f"- {case_of(row)}: {row['error']}" for row in found.rows if row["part"] == "correctness" and "error" in row]
    if lines:
        return "\n".join(lines)
    checked = sum(row["part"] == "correctness" for row in found.rows)
    return f"Nothing, in {len(found.rows)} rows, {checked} of them of correctness." if checked else "Correctness was not checked."


def correctness(found: Found) -> str:
    """Largest error beside what is allowed, and what the GPU tests said."""
    chosen = [row for row in found.rows if row["part"] == "correctness" and "largest_error" in row]
    alone = {True: "yes", False: "no"}
    body = [[case_of(row), f"{row['largest_error']:.2g}", f"{row['allowed']:.2g}", alone[row["alone_equal"]]] for row in chosen]
    made = [table(["", "largest error", "allowed", "a row alone has the same bits"], body)] if body else []
    said = [f"`{row['command']}`: {row['said']}" for row in found.rows if row["part"] == "tests" and "said" in row]
    return "\n\n".join(made + said)


def barrier(found: Found) -> str:
    """Microseconds of a meeting of some programs, by how many groups meet at once, and launches without a hang."""
    chosen = [row for row in found.rows if row["part"] == "barrier" and "us" in row]
    body = [[f"{row['programs']}", f"{row['groups']}", _us(row["us"])] for row in sorted(chosen, key=_size)]
    made = [table(["programs", "groups", "us a barrier"], body)] if body else []
    launched = [row for row in found.rows if row["part"] == "barrier" and "launches" in row and row.get("faults") == []]
    said = [f"{row['launches']:,} launches of {row['programs']} programs and {row['steps']} barriers: none hung." for row in launched]
    return "\n\n".join(made + said)


def constants(found: Found) -> str:
    """What the device can do at best."""
    chosen = [row for row in found.rows if row["part"] == "constants" and not row.keys() & {"error", "skipped"}]
    units = {
        "l2": ("level-2 cache", "bytes_per_us", "bytes/us"), "latency": ("latency of the level-2 cache", "us", "us"),
        "products": ("tensor cores", "multiply_adds_per_us", "multiply-adds/us"), "shared": ("shared memory", "bytes_per_us", "bytes/us"),
    }  # fmt: skip
    body = []
    for row in chosen:
        name, field, unit = units[row["what"]]
        value = row[field]
        said = "not resolved" if value is None else f"{_us(value) if unit == 'us' else f'{value:,}'} {unit}"
        part = f", {row['of_clock']:.0%} of 128 bytes a cycle and multiprocessor at {row['megahertz']:.0f} MHz" if "of_clock" in row else ""
        body.append([name, said + part])
    return table(["", ""], body) if body else ""


def sequences(found: Found) -> str:
    """Microseconds a step against cuDNN and the other peers, with the distance of each to the floor."""
    body = []
    for pair in pairs(found, *_SEQUENCES):
        row = pair.row
        beyond = f"{_us(row['marginal_us'])} / {_us(row['peer_marginal_us'])}" if "marginal_us" in row else ""
        body.append([pair.key, _peer(pair), _us(pair.ours), _us(pair.theirs), _spread(pair.ratio), beyond, *_floor(pair)])
    head = ["", "peer", "fusedrnn us/step", "peer us/step", "ratio (quartiles)", "a further step, us: fusedrnn / peer"]
    return table([*head, "floor us/step", "distances"], body) if body else ""


def decode(found: Found) -> str:
    """Tokens a second, and the part of the rows whose tokens are the same."""
    body = []
    for pair in pairs(found, "decode"):
        assert pair.tokens is not None
        ours, theirs = (number(rate) for rate in pair.tokens)
        body.append([pair.key, _peer(pair), ours, theirs, _spread(pair.ratio), f"{pair.row['rows_equal']:.0%}", *_floor(pair)])
    head = [
        "",
        "peer",
        "fusedrnn tokens/s",
        "peer tokens/s",
        "ratio (quartiles)",
        "rows with the same tokens",
        "floor us/step",
        "distances",
    ]
    return table(head, body) if body else ""


def timeline(found: Found) -> str:
    """Launches and microseconds from the first to the end of the last, of who decodes."""
    chosen = [row for row in found.rows if row["part"] == "timeline" and "operators" in row]
    body = [
        [text(shape_of(row)), row["who"], f"{row['launches']}", _us(sum(took for _, _, took in row["operators"])), _us(row["us"])]
        for row in chosen
    ]
    head = ["", "", "operators on the CPU" if found.emulated else "kernels and copies", "us in them", "us in all"]
    return table(head, body) if body else ""


def losses(found: Found) -> str:
    """Every shape and peer where fusedrnn is slower, the worst first."""
    compared = pairs(found, *_SEQUENCES, "decode")
    lost = sorted((pair for pair in compared if pair.ratio["median"] < 1), key=lambda pair: float(pair.ratio["median"]))
    if not compared:
        return ""
    if not lost:
        return f"None of {len(compared)} comparisons."
    body = [[pair.part, pair.key, _peer(pair), _us(pair.ours), _us(pair.theirs), _spread(pair.ratio), *_floor(pair)] for pair in lost]
    head = ["", "", "peer", "fusedrnn us/step", "peer us/step", "ratio (quartiles)", "floor us/step", "distances"]
    return f"{len(lost)} of {len(compared)} comparisons:\n\n{table(head, body)}"


def missing(found: Found) -> str:
    """What was skipped, and what failed or had no time."""
    lines: dict[str, list[str]] = {}
    for row in found.rows:
        if "skipped" in row or ("error" in row and row["part"] != "correctness"):
            lines.setdefault(str(row.get("skipped", row.get("error"))), []).append(case_of(row))
    return "\n".join(f"- {why}: {_some(cases)}" for why, cases in lines.items())


def _some(cases: Sequence[str]) -> str:
    return "; ".join(cases[:8]) + (f"; and {len(cases) - 8} more" if len(cases) > 8 else "")


def _peer(pair: Pair) -> str:
    if pair.peer in OURS:
        return f"fusedrnn's {pair.peer}"
    if pair.part not in ("sequence", "tables"):
        return pair.peer
    return f"nn.{pair.peer}" if "emulated" in pair.row else f"nn.{pair.peer} (cuDNN)"


def _floor(pair: Pair) -> list[str]:
    if pair.bound is None:
        return ["", ""]
    return [_us(pair.bound), f"{pair.ours / pair.bound:.1f} / {pair.theirs / pair.bound:.1f}"]


def _spread(ratio: Row) -> str:
    low, high = ratio["quartiles"]
    return f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})"


def _us(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _size(row: Row) -> tuple[int, int]:
    return row["groups"], row["programs"]
