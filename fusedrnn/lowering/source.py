"""A loop as one C++ source. In: a program; out: the source, and what has to be handed to it.

The source has a function a phase, which goes over the rows it is given, and one that runs the loop: products with weights, a phase,
products, the next phase, then the carried leaves take their next values. Where every row minds its own business (`Locality`) each
thread has rows of its own, and rows leave when they finish; otherwise one group of threads shares the products.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ..capture.program import Program, Source, Target
from ..optimise.graph import value
from ..optimise.hoist import Moved
from ..optimise.locality import Locality, Mixes, shape
from ..optimise.sink import Sunk
from .care import compiled_with_care
from .operators import size_text
from .phases import Buffer, Phases, write_phases
from .pipeline import optimised
from .pointwise import C_TYPES, wide
from .stages import Stages, stages
from .values import count


@dataclass
class LoopSource:
    """A loop in C++ and its calling convention: ``int64_t run(int64_t* a)``.

    Attributes:
        text: the source.
        module: the graph that it was made of; its attributes are constants.
        slots: the names of the entries of ``a``, in order.
        before: the entry of each tensor that is known before the loop (contiguous).
        weights: the entry of each matrix (packed).
        carried: (source, entry of the initial leaf, entry of the final one where it is returned) of each carried leaf.
        emits: (target, entry) of each emit and each write.
        symbols: the sizes among the entries.
        retires: rows leave when they finish.
        locality: where the rows are; None where they mix, or where the batch size is fixed.
        mixes: what mixes them.
        stages: when what is computed.
        program: what was lowered: the program with its inputs looked up, see `hoist`.
        moved: what that moved.
        sunk: what is done after the loop.
    """

    text: str
    module: torch.fx.GraphModule
    slots: list[str]
    before: dict[Node, str]
    weights: dict[Node, str]
    carried: list[tuple[Source, str, str | None]]
    emits: list[tuple[Target, str]]
    symbols: dict[str, Any]
    retires: bool
    locality: Locality | None
    mixes: Mixes | None
    stages: Stages
    program: Program
    moved: Moved
    sunk: Sunk


# Entries of every loop: control first, then what is the same for all loops.
_CONTROL = (
    "steps",
    "session",
    "groups",
    "threads",
    "limit",
    "bound",
    "base",
    "capacity",
    "rows_ahead",
    "B",
    "init_fin",
    "finished",
    "lengths",
)


def loop_source(program: Program, batch: Any) -> LoopSource:
    """The source of a program's loop; ``batch`` is the expression of its batch size.

    Raises:
        Unlowered: an operator has no rule.
    """
    made = optimised(program, batch)  # its plans are those of the program as it was captured
    program, module, locality = made.program, made.module, made.locality
    found = stages(program, module.graph, lambda node: locality is None or locality.of(node) is not None)
    weights = [product.weight for product in found.products if product.ahead]
    made.moved.hoisted += [f"a product [{', '.join(map(str, shape(weight)))}] of inputs" for weight in weights]
    phases = write_phases(program, module.graph, found, locality)
    return _Text(program, module, found, phases, locality, made.mixes, made.retires, made.moved, made.sunk).source()


class _Text:
    def __init__(
        self,
        program: Program,
        module: torch.fx.GraphModule,
        found: Stages,
        phases: Phases,
        locality: Locality | None,
        mixes: Mixes | None,
        retires: bool,
        moved: Moved,
        sunk: Sunk,
    ) -> None:
        self.moved, self.sunk = moved, sunk
        self.program, self.module, self.stages, self.phases = program, module, found, phases
        self.locality, self.mixes, self.retires = locality, mixes, retires
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self.source_of = dict(zip(placeholders, program.sources, strict=True))
        for node in self.stages.carried:
            for size in shape(node):
                phases.symbols.update({str(symbol): symbol for symbol in size.free_symbols})

    def source(self) -> LoopSource:
        phases = self.phases
        symbols = dict(sorted(phases.symbols.items()))
        outer = [*_CONTROL, *symbols]
        self.outer_types = dict.fromkeys(outer, "int64_t")
        self.outer_types |= {"init_fin": "const uint8_t*", "finished": "uint8_t*", "lengths": "int32_t*"}
        for node, name in phases.externals.items():
            self.outer_types[name] = f"const {C_TYPES[value(node).dtype]}*"
        for node, name in phases.weights.items():
            self.outer_types[name] = f"const {C_TYPES[wide(value(node).dtype)]}*"
        carried = []
        for node, buffer in phases.carried.items():
            self.outer_types[f"init_{buffer.name}"] = f"const {buffer.kind}*"
            if self._is_returned(node):
                self.outer_types[f"final_{buffer.name}"] = f"{buffer.kind}*"
            carried.append((self.source_of[node], f"init_{buffer.name}", f"final_{buffer.name}" if self._is_returned(node) else None))
        for _, name, kind in phases.emits:
            self.outer_types[name] = f"{kind}*"
        text = compiled_with_care(self._text())
        return LoopSource(
            text, self.module, list(self.outer_types), phases.externals, phases.weights, carried,
            [(target, name) for target, name, _ in phases.emits], symbols, self.retires,
            self.locality, self.mixes, self.stages, self.program, self.moved, self.sunk,
        )  # fmt: skip

    def _is_returned(self, node: Node) -> bool:
        return self.source_of[node].kind in ("state", "loop_state")

    def _returned(self) -> list[Buffer]:
        return [buffer for node, buffer in self.phases.carried.items() if self._is_returned(node)]

    def _text(self) -> str:
        phases = self.phases
        parts = [
            f"// One loop: {len(self.stages.products)} products, {self.stages.phases} phases a step; rows "
            + ("leave when they finish." if self.retires else "stay to the end." if self.locality else "are computed together."),
            '#include "loop.h"\n\nnamespace {\n',
            "struct Outer {  // what all threads share",
            *[f"    {kind} {name};" for name, kind in self.outer_types.items()],
            "};\n",
            "struct Group {  // rows that run together",
            "    int64_t n, t, fault, status;",
            "    int64_t from, until, many, fault_at;  // the steps whose products are there already, for how many rows",
            "    int64_t *map, *slot;                  // the place of each row in the batch, and among those rows",
            "    uint8_t *fin, *was, *late;",
            "    char* arena;",
            *[f"    {kind} *{name};" for name, kind in self._group_fields()],
            "};\n",
            *([self._with_locals(phases.ahead)] if phases.ahead else []),
            *[self._with_locals(text) for text in phases.texts],
            self._step(),
            self._start(),
            self._leave(),
            self._advance(),
            self._finish(),
            "}  // namespace\n",
            self._run(),
        ]
        return "\n".join(parts) + "\n"

    def _buffers(self) -> list[Buffer]:
        phases = self.phases
        made = [*phases.carried.values(), *[Buffer(f"{b.name}n", b.dims, b.dtype, b.of_rows) for b in phases.carried.values()]]
        made += phases.crossing.values()
        for left, result in phases.products.values():
            made += [result] if left is None else [left, result]
        return list({buffer.name: buffer for buffer in made}.values())  # a left side may be a carried leaf

    def _group_fields(self) -> list[tuple[str, str]]:
        return [(buffer.name, buffer.kind) for buffer in self._buffers()]

    def _with_locals(self, text: str) -> str:
        """Name what a function uses of the two structures, so that the compiler keeps it in registers."""
        words = set(re.findall(r"\b[A-Za-z_]\w*\b", text))
        lines = [
            f"    const auto {name} = o.{name};"
            for name in self.outer_types
            if name in words and name not in ("base", "bound", "rows_ahead")
        ]
        lines += [f"    {kind}* const __restrict {name} = s.{name};" for name, kind in self._group_fields() if name in words]
        lines += [f"    uint8_t* const {name} = s.{name};" for name in ("fin", "late") if name in words]
        return text.replace("@LOCALS@", "\n".join(lines)) + "\n"

    def _rows_in(self, buffer: Buffer) -> str:
        """The number of elements of a buffer for a group of ``n`` rows."""
        rows = "n" if buffer.of_rows and self.locality is not None else "1"
        if buffer.ahead:
            return f"({rows} > o.rows_ahead ? {rows} : o.rows_ahead) * ({buffer.per_row})"
        return f"{rows} * ({buffer.per_row})"

    def _sizes(self) -> str:
        return "".join(f"    const int64_t {name} = o.{name};\n    (void){name};\n" for name in ["B", *self.phases.symbols])

    def _step(self) -> str:
        lines = [
            "// One step of a group.",
            "void step(const Outer& o, Group& s, const int64_t t, frnn::Crew& crew) {",
            "    const int64_t n = s.n;",
            self._sizes(),
        ]
        for number in range(-1, self.stages.phases):
            if number == -1 and self.phases.ahead:
                lines += self._step_ahead()
            if number >= 0:
                if self.locality is not None:
                    lines += [
                        "    if (n >= 16 * crew.count)",
                        "        crew.all([&](int i, int of) {",
                        f"            phase{number}(o, s, t, n * i / of, n * (i + 1) / of, s.arena + i * arena_bytes(o));",
                        "        });",
                        "    else",
                        f"        phase{number}(o, s, t, 0, n, s.arena);",
                    ]
                else:
                    lines.append(f"    phase{number}(o, s, t, 0, 1, s.arena);")
            for product in self.stages.products:
                if product.after == number and not product.ahead:
                    lines.append(self._product(product))
        return self._arena() + "\n".join([*lines, "}\n"])

    def _arena(self) -> str:
        sums = [" + ".join(f"frnn::rounded_up({size})" for size in arena) or "0" for arena in self.phases.arenas]
        body = "".join(f"    most = most > ({total}) ? most : ({total});\n" for total in sums)
        return f"int64_t arena_bytes(const Outer& o) {{\n{self._sizes()}    int64_t most = 0;\n{body}    return most;\n}}\n\n"

    def _step_ahead(self) -> list[str]:
        """Products that wait for nothing but the time, for as many steps as make enough rows for a good product."""
        rows = "n" if self.locality is not None else "1"
        ranges = "n * i / of, n * (i + 1) / of" if self.locality is not None else "0, 1"
        lines = [
            "    if (t >= s.until) {",
            f"        const int64_t rows = {rows}, most = o.rows_ahead > rows ? o.rows_ahead / rows : 1;",
            "        const int64_t left = o.bound - t + 1, steps = left < 1 ? 1 : left < most ? left : most;",
            "        s.from = t, s.until = t + steps, s.many = rows;",
            "        for (int64_t r = 0; r < rows; ++r) s.slot[r] = r;",
            "        for (int64_t k = 0; k < steps; ++k)",
        ]
        if self.locality is not None:
            lines += [
                "            if (n >= 16 * crew.count)",
                f"                crew.all([&](int i, int of) {{ ahead(o, s, t + k, {ranges}, s.arena + i * arena_bytes(o)); }});",
                "            else",
            ]
        lines.append(f"                ahead(o, s, t + k, 0, {rows}, s.arena);")
        lines += [
            self._product(product, "steps * ").replace("    frnn", "        frnn") for product in self.stages.products if product.ahead
        ]
        return [*lines, "    }"]

    def _product(self, product: Any, times: str = "") -> str:
        left, result = self.phases.products[product.node]
        start = self.phases.carried[product.carried] if left is None else left
        inner, columns = (size_text(size) for size in shape(product.weight))
        rows = count(result.dims[:-1])
        many = f"{times}n * ({rows})" if self.locality is not None else f"{times}({rows})"
        weight = self.phases.weights[product.weight]
        return f"    frnn::crew_product<{result.kind}>(crew, s.{start.name}, {many}, o.{weight}, {inner}, {columns}, s.{result.name});"

    def _start(self) -> str:
        rows = self.locality is not None
        lines = [
            "// Give a group its rows: every `of`-th from `first` on.",
            "void start(const Outer& o, Group& s, frnn::Memory& memory, const int64_t first, const int64_t of, const int threads) {",
            self._sizes(),
            "    const int64_t most = " + ("(B - first + of - 1) / of;" if rows else "1;"),
            "    const int64_t flags = " + ("most;" if rows else "B;"),
            "    s.n = s.t = s.fault = s.status = s.from = s.until = s.many = 0;",
            "    s.fault_at = INT64_MAX;",
            "    s.map = (int64_t*)memory.take(most * 8), s.slot = (int64_t*)memory.take(most * 8);",
            "    s.fin = (uint8_t*)memory.take(flags), s.was = (uint8_t*)memory.take(flags), s.late = (uint8_t*)memory.take(flags);",
            "    memset(s.late, 0, (size_t)flags);",
            "    s.arena = memory.take(arena_bytes(o) * threads);",
            "    {",
            "        const int64_t n = most;",
        ]
        lines += [f"        s.{b.name} = ({b.kind}*)memory.take({self._rows_in(b)} * (int64_t)sizeof({b.kind}));" for b in self._buffers()]
        lines.append("    }")
        leaves = list(self.phases.carried.values())
        if rows:
            lines.append("    for (int64_t b = first; b < B; b += of) {")
            if self.retires:
                lines.append("        if (o.init_fin[b]) {\n            o.lengths[b] = 0, o.finished[b] = 1;")
                lines += [
                    f"            memcpy(o.final_{b.name} + b * ({b.per_row}), o.init_{b.name} + b * ({b.per_row}), {_bytes(b)});"
                    for b in self._returned()
                    if b.of_rows
                ]
                lines.append("            continue;\n        }")
            lines.append("        s.was[s.n] = o.init_fin[b];")
            lines += [
                f"        memcpy(s.{b.name} + s.n * ({b.per_row}), o.init_{b.name} + b * ({b.per_row}), {_bytes(b)});"
                for b in leaves
                if b.of_rows
            ]
            lines.append("        o.lengths[b] = 0;\n        s.map[s.n++] = b;\n    }")
        else:
            lines.append("    s.n = 1, s.map[0] = 0;\n    memcpy(s.was, o.init_fin, (size_t)B);\n    memset(o.lengths, 0, (size_t)B * 4);")
        lines += [f"    memcpy(s.{b.name}, o.init_{b.name}, {_bytes(b)});" for b in leaves if not b.of_rows or not rows]
        return "\n".join([*lines, "}\n"])

    def _leave(self) -> str:
        """After a step: who has finished, and for how long did it run."""
        if not self.retires:
            flags = "s.n" if self.locality is not None else "o.B"
            return "\n".join([
                "// Note who has finished after step t.",
                "void leave(const Outer& o, Group& s, const int64_t t) {",
                f"    for (int64_t r = 0; r < {flags}; ++r) {{",
                "        if (s.was[r]) continue;",
                "        o.lengths[r] = (int32_t)t;",
                "        s.was[r] = s.fin[r];",
                "    }",
                "}\n",
            ])  # fmt: skip
        rows = [buffer for buffer in self.phases.carried.values() if buffer.of_rows]
        lines = [
            "// The rows that finish at step t leave; the last ones take their places.",
            "void leave(const Outer& o, Group& s, const int64_t t) {",
            self._sizes(),
            "    for (int64_t r = s.n - 1; r >= 0; --r) {",
            "        if (!s.fin[r]) continue;",
            "        const int64_t R = s.map[r], last = --s.n;",
            "        o.lengths[R] = (int32_t)t, o.finished[R] = 1;",
        ]
        lines += [
            f"        memcpy(o.final_{b.name} + R * ({b.per_row}), s.{b.name} + r * ({b.per_row}), {_bytes(b)});"
            for b in self._returned()
            if b.of_rows
        ]
        lines.append("        if (r == last) continue;\n        s.map[r] = s.map[last], s.slot[r] = s.slot[last];")
        lines += [f"        memcpy(s.{b.name} + r * ({b.per_row}), s.{b.name} + last * ({b.per_row}), {_bytes(b)});" for b in rows]
        return "\n".join([*lines, "    }", "}\n"])

    def _advance(self) -> str:
        flags = "s.n" if self.locality is not None else "o.B"
        done = "s.n == 0" if self.retires else "done"
        lines = [
            "// Steps until all rows of a group have finished, the limit or the room for emits is reached. Status 1: there is more to do.",
            "void advance(const Outer& o, Group& s, frnn::Crew& crew) {",
            "    for (s.status = 0;;) {",
        ]
        if not self.retires:
            lines.append(f"        bool done = true;\n        for (int64_t r = 0; r < {flags}; ++r) done = done && s.was[r];")
        lines += [
            f"        if ({done} || s.t >= o.limit) return;",
            "        if (s.t - o.base >= o.capacity) {\n            s.status = 1;\n            return;\n        }",
            "        const int64_t t = s.t + 1;",
            "        step(o, s, t, crew);",
            f"        for (int64_t r = 0; r < {flags}; ++r) s.fault |= s.late[r];",
            "        s.fault |= t >= s.fault_at;",
            "        if (s.fault) return;",
        ]
        for buffer in self.phases.carried.values():
            lines.append(f"        {{ auto* const swap = s.{buffer.name}; s.{buffer.name} = s.{buffer.name}n; s.{buffer.name}n = swap; }}")
        lines += ["        leave(o, s, t);", "        s.t = t;", "    }", "}\n"]
        return "\n".join(lines)

    def _finish(self) -> str:
        """The final leaves of rows that did not finish, or of all where none leaves."""
        leaves = self._returned()
        lines = ["// Hand over what a group still has.", "void finish(const Outer& o, Group& s) {", self._sizes()]
        if self.locality is not None:
            lines.append("    for (int64_t r = 0; r < s.n; ++r) {\n        const int64_t R = s.map[r];")
            lines.append(
                "        o.finished[R] = 0;\n        o.lengths[R] = (int32_t)s.t;" if self.retires else "        o.finished[R] = s.was[r];"
            )
            lines += [
                f"        memcpy(o.final_{b.name} + R * ({b.per_row}), s.{b.name} + r * ({b.per_row}), {_bytes(b)});"
                for b in leaves
                if b.of_rows
            ]
            lines.append("    }")
        else:
            lines.append("    memcpy(o.finished, s.was, (size_t)B);")
            lines += [f"    memcpy(o.final_{b.name}, s.{b.name}, {_bytes(b)});" for b in leaves]
        return "\n".join([*lines, "}\n"])

    def _zero_emits(self) -> list[str]:
        """Rows that left emit zeros up to the last step of all."""
        if not self.retires:
            return []
        lines = ["        const int64_t end = longest < o.base + o.capacity ? longest : o.base + o.capacity;",
                 "        for (int64_t b = 0; b < B; ++b) {",
                 "            int64_t from = o.lengths[b] ? o.lengths[b] : o.init_fin[b] ? 0 : longest;",
                 "            if (from < o.base) from = o.base;",
                 "            for (int64_t t = from; t < end; ++t) {"]  # fmt: skip
        dims = {place: self._emit_dims(place) for place, (target, _, _) in enumerate(self.phases.emits) if target.kind == "emit"}
        for place, size in dims.items():
            _, name, kind = self.phases.emits[place]
            lines.append(f"                memset(o.{name} + ((t - o.base) * B + b) * ({size}), 0, (size_t)({size}) * sizeof({kind}));")
        return [*lines, "            }", "        }"] if dims else []

    def _emit_dims(self, place: int) -> str:
        target = self.phases.emits[place][0]
        node = dict(zip(self.program.targets, self.stages.outputs, strict=True))[target]
        return count([size_text(size) for size in shape(node)[1:]])

    def _run(self) -> str:
        uniform = [buffer for buffer in self._returned() if not buffer.of_rows and self.locality is not None]
        lines = [
            "// Runs the loop, or goes on with a session. Returns 0: done; 1: the room for emits is full, call again; 2: a fault.",
            'extern "C" int64_t run(int64_t* a) {',
            "    Outer o;",
            *[f"    o.{name} = ({kind})a[{place}];" for place, (name, kind) in enumerate(self.outer_types.items())],
            self._sizes(),
            "    struct Session {\n        frnn::Memory memory;\n        Group groups[64];\n    };",
            "    Session* session = (Session*)o.session;",
            "    const int64_t groups = o.groups;",
            "    if (!session) {",
            "        session = (Session*)__builtin_malloc(sizeof(Session));",
            "        session->memory.last = nullptr;",
            "        for (int64_t g = 0; g < groups; ++g)",
            "            start(o, session->groups[g], session->memory, g, groups, groups > 1 ? 1 : (int)o.threads);",
            "    }",
            "    Group* const group = session->groups;",
            "    if (groups > 1)",
            "        frnn::team((int)groups, [&](int index, int of) {",
            "            frnn::Crew alone;",
            "            for (int64_t g = index; g < groups; g += of) advance(o, group[g], alone);",
            "        });",
            "    else",
            "        run_crew(o, group[0], (int)o.threads);",
            "    int64_t status = 0, longest = 0, last = 0;",
            "    for (int64_t g = 0; g < groups; ++g) {",
            "        if (group[g].fault) status = 2;",
            "        if (group[g].status > status) status = group[g].status;",
            "        if (group[g].t > longest) longest = group[g].t, last = g;",
            "    }",
            "    (void)last;",
            "    if (status == 0) {",
            "        for (int64_t g = 0; g < groups; ++g) finish(o, group[g]);",
            *[f"        memcpy(o.final_{b.name}, group[last].{b.name}, {_bytes(b)});" for b in uniform],
            "    }",
            "    if (status < 2) {",
            *self._zero_emits(),
            "    }",
            "    a[0] = longest;",
            "    a[1] = (int64_t)session;",
            "    if (status != 1) {",
            "        session->memory.~Memory();",
            "        __builtin_free(session);",
            "        a[1] = 0;",
            "    }",
            "    return status;",
            "}",
            "",
            self._pack(),
        ]
        crew = [
            "namespace {",
            "// One group, whose threads share the products.",
            "void run_crew(const Outer& o, Group& s, const int threads) {",
            "    frnn::Crew crew;",
            "    frnn::team(threads, [&](int index, int of) {",
            "        if (index == 0) {",
            "            __atomic_store_n(&crew.count, of, __ATOMIC_RELAXED);",
            "            advance(o, s, crew);",
            "            if (of > 1) crew.dismiss();",
            "        } else {",
            "            __atomic_store_n(&crew.count, of, __ATOMIC_RELAXED);",
            "            crew.serve(index);",
            "        }",
            "    });",
            "}",
            "}  // namespace\n",
        ]
        return "\n".join([*crew, *lines])

    def _pack(self) -> str:
        kinds = sorted({C_TYPES[wide(value(node).dtype)] for node in self.phases.weights})
        lines = []
        for kind in kinds:
            lines += [
                f'extern "C" int64_t packed_size_{kind}(int64_t K, int64_t N) {{ return (int64_t)frnn::packed_size<{kind}>(K, N); }}',
                f'extern "C" void pack_{kind}(',
                f"    const {kind}* w, int64_t row_stride, int64_t column_stride, int64_t K, int64_t N, {kind}* out) {{",
                f"    frnn::pack<{kind}>(w, row_stride, column_stride, K, N, out);",
                "}",
            ]
        return "\n".join(lines)


def _bytes(buffer: Buffer) -> str:
    return f"(size_t)({buffer.per_row}) * sizeof({buffer.kind})"
