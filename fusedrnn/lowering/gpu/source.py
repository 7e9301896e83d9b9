"""The text of a persistent kernel. In: a schedule; out: Triton source, and what the launch has to hand to it.

The kernel reads top to bottom: this program's rows and columns, resident weights, carried leaves, the loop, what is written back. Names
are those of the graph's nodes. A value is written where it is first asked for, from what is published and emitted backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from ...capture.program import Target
from ...optimise.graph import value
from . import types
from .multiplying import Multiplying
from .schedule import Schedule
from .step import STORED, CarriedLeaf
from .tiles import Exchange, Tile

_IMPORTS = """import triton
import triton.language as tl

from fusedrnn.kernels.gpu.activations import expm1, log1p, power, sigmoid, signed, tanh  # noqa: F401
from fusedrnn.kernels.gpu.argmax import LOWEST, key_index, order_key  # noqa: F401
from fusedrnn.kernels.gpu.barrier import arrive, wait  # noqa: F401
from fusedrnn.kernels.gpu.integers import floor_divide, remainder, trunc_divide  # noqa: F401
from fusedrnn.kernels.gpu.products import halves, met, multiply, own, product, resident, streamed  # noqa: F401
from fusedrnn.kernels.gpu.reductions import LOWEST32, order, unordered  # noqa: F401
"""

_PREFIXES = {"emit": "e", "stored": "z", "index": "at", "value": "new"}
_KEYS = {"tl.float32": torch.float32, "tl.int32": torch.int32, "tl.int64": torch.int64}


@dataclass(frozen=True)
class LeafArguments:
    """A carried leaf's initial and final tensor among the kernel's arguments."""

    leaf: CarriedLeaf
    initial: str
    final: str


@dataclass
class KernelSource:
    """A persistent kernel's source and its calling convention.

    Attributes:
        text: the source; its kernel is called ``loop``.
        pointers: the names of the tensor arguments with Triton's element types, in order.
        numbers: the names of the integer arguments, in order; the sizes of the graph among them as their symbols.
        externals: the name of each tensor that is known before the loop.
        hoisted: the name of each tensor that is made before the loop for all steps ``[steps, ...]``.
        weights: the name of each tile's packed weight.
        leaves: the carried leaves.
        emits: (target, node, name) of each emit and stored vector.
        exchanges: (exchange, name) of the scratch ``[slots * of, padded rows, width]``, one of those that share it.
        keys: the names of the scratch ``[2, padded rows, programs]`` of reductions, with their dtypes.
    """

    text: str
    pointers: dict[str, str]
    numbers: list[str]
    externals: dict[Node, str]
    hoisted: dict[Node, str]
    weights: list[tuple[Tile, str]]
    leaves: list[LeafArguments]
    emits: list[tuple[Target, Any, str]]
    exchanges: list[tuple[Exchange, str]]
    keys: dict[str, torch.dtype]
    symbols: list[str] = field(default_factory=list)


def kernel_source(
    schedule: Schedule, batch_tile: int, header: Sequence[str] = (), *, some: bool = False, ahead: bool = True
) -> KernelSource:
    """The source of a scheduled step.

    Args:
        batch_tile: the rows of a group, a power of two.
        header: lines that tell the plan.
        some: the batch is smaller than that: what is exchanged of rows that are not there is not read.
        ahead: what the first phase reads is asked for in the step before.

    Raises:
        Unlowered: a node has no rule, or asks for columns that its program does not have.
    """
    return _Writer(schedule, batch_tile, header, some, ahead).source()


class _Writer(Multiplying):
    def __init__(self, schedule: Schedule, batch_tile: int, header: Sequence[str], some: bool, ahead: bool) -> None:
        super().__init__(schedule, batch_tile, some)
        self.header, self.may_ask = header, ahead
        self.body = self.lines
        self.emitted: set[tuple[int, int]] = set()

    def source(self) -> KernelSource:
        schedule = self.schedule
        for tile in schedule.tiles:
            if self.is_ahead(tile):
                for node in tile.carried:
                    self.names[node, self._own(node)] = self._fresh_once(node)
            elif tile.exchange is not None and tile.carried:  # nothing is left of the step to wait for: made at the start of the next
                self.read_and_multiply(tile, "before", self.body, {})
        for phase in range(schedule.phases):
            self._phase(phase)
        last = self._end_of_step()
        asked = [] if schedule.barriers and not self.alone else self.asked_for()
        return self._assembled([*asked, *self.body, *last])

    def _phase(self, phase: int) -> None:
        schedule = self.schedule
        self.body.append(f"# phase {phase}")
        self.body += self.multiplied(phase, only_carried=False)
        published = [exchange for exchange in schedule.exchanges if exchange.phase == phase]
        reduced = [node for node, at in schedule.reductions.items() if at == phase]
        for exchange in published:
            self._publish(exchange)
        for node in reduced:
            place = list(schedule.reductions).index(node)
            self.body.append(f"tl.store(keys{place} + (half * padded + flat) * {self.sharing.programs} + col, {self._part(node)})")
        if phase not in schedule.barriers:
            self.body += self.multiplied(phase, only_carried=True)  # it hides the wait
            return
        if not self.alone:
            self.body.append("arrive(counter, ASM)")
            if self.may_ask:
                self.body += self.asked_for()
                self.may_ask = False
        self._emit(phase)  # while the others arrive
        self.body += self.multiplied(phase, only_carried=True)  # it hides the wait
        if self.alone:
            self.body.append("tl.debug_barrier()")
        else:
            self.body += [f"target += {self.sharing.programs}", "late = late | wait(counter, target, limit, ASM)"]
        for node in reduced:
            self._reduce(node)

    def _reduce(self, node: Node) -> None:
        """Put the parts of all programs together. Those of a row are neighbours, as the columns of a vector are in memory: so they are
        loaded as vectors are, and need not change their place in registers."""
        place, programs = list(self.schedule.reductions).index(node), self.sharing.programs
        reduction = self.step.reductions[node]
        several = 1 << (programs - 1).bit_length()
        self.taken.add(f"everyone{several}")
        self.body.append(
            f"keys{place}_all = tl.load(keys{place} + (half * padded + local) * {programs} + everyone{several}, "
            f'mask=everyone{several} < {programs}, other={reduction.identity}, cache_modifier=".cg")'
        )
        self.names[node, None] = self._decoded(node, reduction.over(f"keys{place}_all"))
        line = f"everyone{several} = tl.arange(0, {several})[:, None]"
        if line not in self.prelude:
            self.prelude.insert(0, line)

    def _publish(self, exchange: Exchange) -> None:
        text = self._next_of(exchange.leaf) if exchange.leaf is not None else self._at_own(exchange.node)
        self.widths.add(exchange.width)
        self.body.append(self._store_exchange(exchange, "this", text))

    def _store_exchange(self, exchange: Exchange, which: str, text: str) -> str:
        width = exchange.width
        return (
            f"tl.store({exchange.name} + ({exchange.slot(which)} * padded + local) * {width} + c{width}, "
            f"{types.stored(text, exchange.dtype)}, mask=in{width})"
        )

    def _emit(self, phase: int) -> None:
        """Store the emits that are known by the end of a phase."""
        for place, (target, node) in enumerate(self.step.outputs):
            for part, column in self.step.stored(node) if target.kind in STORED else []:
                if (place, column) not in self.emitted and self._known(part, phase):
                    self.emitted.add((place, column))
                    self._store_emit(target, node, part, column)

    def _known(self, node: Any, phase: int) -> bool:
        return not isinstance(node, Node) or self.schedule.phase_of.get(node, 0) <= phase

    def _emit_name(self, target: Target) -> str:
        return f"{_PREFIXES[target.kind]}{target.place}"

    def _store_emit(self, target: Target, node: Any, part: Any, column: int) -> None:
        dtype, width = value(node).dtype, self.width(part)
        text = self._at_own(part)
        if dtype == torch.bool:
            text = f"tl.where({text}, 1, 0)"
        if self.made.retires:
            text = f"tl.where(done > 0, 0, {text})"
        address, mask = self._emit_address(self._emit_name(target), node, part, column, "step")
        self.body.append(f"tl.store({address}, {types.stored(text, dtype)} + {self._zero(width, dtype)}, mask={mask})")

    def _zero(self, width: int | None, dtype: torch.dtype) -> str:
        """Zeros of the shape of a tile, which broadcast what is added to them."""
        rows = 1 if width is None else self.sharing.block(width)
        return f"tl.zeros(({rows}, {self.bb}), {types.MEMORY[dtype]})"

    def _emit_address(self, name: str, node: Any, part: Any, column: int, step: str) -> tuple[str, str]:
        """Where a part of what is stored stands, from a column on, and the mask of this program's columns of it."""
        whole_width, width = self.width(node), self.width(part)
        columns, mask = f" + {column}" if column else "", ["live"]
        if width is not None:
            self.widths.add(width)
            columns = f" + c{width}{columns}"
            mask.append(f"in{width}")
        if width is None or (self.sharing.is_whole(width) and not self.alone):
            mask.append("first")
        if not self.one_row and self.rows(node) is None:  # what is written into an array may be of no row
            return f"{name} + {step} * {width or 1} + rows * 0{columns}", " & ".join([*mask, "(rows == 0)"])
        row = "" if whole_width is None else f" * {whole_width}"
        return f"{name} + {step} * B{row} + rows{row}{columns}", " & ".join(mask)

    def _end_of_step(self) -> list[str]:
        """The flags, and the next step's leaves."""
        self._emit(self.schedule.phases)
        outputs = {target.kind: node for target, node in self.step.outputs if target.kind in ("finished", "past")}
        if isinstance(outputs.get("past"), Node):
            past = self._at_own(outputs["past"])
            self.body.append(f"bad = tl.where({past} & (done == 0), 1, bad)")
        finished = self._at_own(outputs["finished"])
        self.body.append("lengths = tl.where(done > 0, lengths, time)")
        assigned = [(self._leaf_name(leaf), self._next_of(leaf)) for leaf in self.step.leaves]
        lines = [f"{name} = {new}" for name, new in assigned]
        lines += [f"{name} = {name}_next" for name in self.carried.values()]
        for tile in filter(self.is_ahead, self.schedule.tiles):
            lines += [f"{self._fresh_once(node)} = {self._fresh_once(node)}_next" for node in tile.carried]
        lines.append(f"done = tl.where({finished} | (done > 0), 1, 0)")
        going = "1 - tl.min(done)"
        lines.append(f"going = {going}" if self.alone else f"going = tl.where(late > 0, 0, {going})")
        lines.append("t = t + 1")
        return lines

    def _assembled(self, loop: list[str]) -> KernelSource:
        leaves = [LeafArguments(leaf, f"{self._leaf_name(leaf)}_in", f"{self._leaf_name(leaf)}_out") for leaf in self.step.leaves]
        weights = [(tile, f"{tile.name}_at") for tile in self.schedule.tiles]
        emits = [(target, node, self._emit_name(target)) for target, node in self.step.outputs if target.kind in STORED]
        exchanges = [(exchange, exchange.name) for exchange in self.schedule.exchanges if exchange.place == 0]
        keys = {f"keys{place}": _KEYS[self.step.reductions[node].key] for place, node in enumerate(self.schedule.reductions)}
        before, after = self._before_loop(leaves), self._after_loop(leaves, emits)
        pointers = {name: _element(value(node).dtype) for node, name in [*self.externals.items(), *self.hoisted.items()]}
        pointers |= {name: _element(tile.in_memory) for tile, name in weights}
        for entry in leaves:
            pointers[entry.initial] = pointers[entry.final] = _element(value(entry.leaf.node).dtype)
        pointers |= {name: _element(value(node).dtype) for _, node, name in emits}
        pointers |= {name: _element(exchange.dtype) for exchange, name in exchanges} | {
            name: _element(dtype) for name, dtype in keys.items()
        }
        pointers |= {"done_in": "i32", "done_out": "i32", "lengths_in": "i32", "lengths_out": "i32", "counters": "i32", "error": "i32"}
        numbers = ["B", "padded", "first_row", "t0", "T", "limit", *self.symbols]
        text = self._text(pointers, numbers, before, loop, after)
        return KernelSource(
            text, pointers, numbers, self.externals, self.hoisted, weights, leaves, emits, exchanges, keys, list(self.symbols)
        )

    def _text(self, pointers: dict[str, str], numbers: list[str], before: list[str], loop: list[str], after: list[str]) -> str:
        lines = ['"""' + (self.header[0] if self.header else "A loop as one launch."), *self.header[1:], '"""', "", _IMPORTS, ""]
        fixed = ", ".join(f'"{name}"' for name in ("first_row", "t0", "T", "limit", *self.symbols))
        lines += [f"@triton.jit(do_not_specialize=[{fixed}])", "def loop("]
        lines += [f"    {', '.join(names)}," for names in _batched(list(pointers), 8)]
        lines += [f"    {', '.join(numbers)},", "    ASM: tl.constexpr, PREC: tl.constexpr,", "):"]
        lines += [f"    {line}" for line in before]
        lines.append("    while (t < T) & (going > 0):")
        lines += [f"        {line}" for line in ["time = t + 1", "half = time & 1", "step = (t - t0).to(tl.int64)", *loop]]
        lines += [f"    {line}" for line in after]
        return "\n".join(lines) + "\n"

    def _before_loop(self, leaves: list[LeafArguments]) -> list[str]:
        bb, programs = self.bb, self.sharing.programs
        for entry in leaves:
            if entry.leaf.width is not None:
                self.widths.add(entry.leaf.width)
        tiles = self.schedule.tiles
        lines = [
            "col, grp = tl.program_id(0), tl.program_id(1)",
            f"flat = grp * {bb} + tl.arange(0, {bb})  # of the launch",
            *self.read_rows.values(),
            "local = flat[None, :]",
            "rows = (first_row + local).to(tl.int64)  # of the batch",
            "live = rows < B",
            f"zero = tl.zeros((1, {bb}), tl.int32)",
            "first = (col + zero) == 0",
            "counter = counters + grp * 32",
        ]
        for width in sorted(self.widths):
            block = self.sharing.block(width)
            begin = "" if self.sharing.is_whole(width) else f"col * {block} + "
            lines += [f"c{width} = ({begin}tl.arange(0, {block}))[:, None]", f"in{width} = c{width} < {width}"]
        lines += [f"k{chunk} = tl.arange(0, {chunk})" for chunk in sorted({tile.chunk for tile in tiles})]
        lines += [f"m{rows} = tl.arange(0, {rows})" for rows in sorted({tile.rows for tile in tiles} | self._row_sets())]
        for tile in tiles:
            offset = "" if self.alone else f" + col * {tile.rows * tile.inner}"
            lines.append(f"{tile.name}_at = {tile.name}_at{offset}")
            if tile.resident:
                lines.append(
                    f"{tile.name} = resident({tile.name}_at, {self._far(tile)}, m{tile.rows}, k{tile.chunk}, {tile.inner}, {tile.chunk}, "
                    f"{self._kind(tile)})"
                )
        lines += self.prelude
        lines += ["done = tl.load(done_in + rows, mask=live, other=1)", "lengths = tl.load(lengths_in + rows, mask=live, other=0)"]
        lines += [self._load_leaf(entry) for entry in leaves]
        lines += ["bad = zero", "t = t0", "target = 0", "late = 0", "going = 1 - tl.min(done)"]
        return lines + self._first_products(programs)

    def _row_sets(self) -> set[int]:
        return {self.sharing.block(1)} if any(product.width == 1 for product in self.step.products.values()) else set()

    def _first_products(self, programs: int) -> list[str]:
        """The products of the first step's carried leaves: they are exchanged once before the loop.

        They stand under a condition, so that what addresses the weights is not kept in registers for the loop: four for each wgmma in it.
        """
        lines: list[str] = []
        exchanges = [exchange for exchange in self.schedule.exchanges if exchange.leaf is not None]
        if not exchanges:
            return lines
        for exchange in exchanges:
            assert exchange.leaf is not None
            lines.append(self._store_exchange(exchange, "first", self._leaf_name(exchange.leaf)))
        if self.alone:
            lines.append("tl.debug_barrier()")
        else:
            lines += ["arrive(counter, ASM)", f"target += {programs}", "late = wait(counter, target, limit, ASM)"]
        before = []
        for tile in self.schedule.tiles:
            if self.is_ahead(tile):
                names = {product.node: self._fresh_once(product.node) if product.node in tile.carried
                         else self._fresh(f"{product.node.name}_unused") for product, _ in tile.segments}  # fmt: skip
                for product, _ in tile.segments:
                    if product.node in tile.carried:
                        rows = 1 if product.width == 1 else self.sharing.block(product.width)
                        before.append(f"{names[product.node]} = tl.zeros(({rows}, {self.bb}), tl.float32)")
                self.read_and_multiply(tile, "first", lines, names)
        if not self.alone:
            lines.append("going = tl.where(late > 0, 0, going)")
        return [*before, "if going > 0:  # the carried vectors as the first step finds them", *[f"    {line}" for line in lines]]

    def _load_leaf(self, entry: LeafArguments) -> str:
        leaf, name, dtype = entry.leaf, self._leaf_name(entry.leaf), value(entry.leaf.node).dtype
        address, masks = entry.initial, ["live"] if leaf.by_row else []
        if leaf.by_row:
            address += f" + rows * {leaf.width or 1}"
        if leaf.width is not None:
            address += f" + c{leaf.width}"
            masks.append(f"in{leaf.width}")
        loaded = f"tl.load({address}{', mask=' + ' & '.join(masks) + ', other=0' if masks else ''}).to({types.carried_in(dtype)})"
        if leaf.by_row or (leaf.width is None and not self.one_row):  # of one row a number may be made of what is the row's
            return f"{name} = {loaded}"
        return f"{name} = {loaded} + tl.zeros((1, {self.bb}), {types.carried_in(dtype)})"

    def _after_loop(self, leaves: list[LeafArguments], emits: list[tuple[Target, Any, str]]) -> list[str]:
        lines = []
        if not self.alone:
            lines += ["if late > 0:", "    tl.store(error, 1)"]
        lines += ["if tl.max(bad) > 0:", "    tl.store(error + 1, 1)"]
        for entry in leaves:
            leaf, name = entry.leaf, self._leaf_name(entry.leaf)
            whole = leaf.width is None or self.sharing.is_whole(leaf.width)
            address, masks = entry.final, ["first"] if whole else []
            if leaf.by_row:
                address += f" + rows * {leaf.width or 1}"
                masks.append("live")
            elif leaf.width is not None or self.one_row:
                address += " + rows"
                masks.append("(rows == 0)")
            if leaf.width is not None:
                address += f" + c{leaf.width}"
                masks.append(f"in{leaf.width}")
            dtype = value(leaf.node).dtype
            stored = name if dtype in types.HALVES else types.stored(name, dtype)  # float32 where another launch goes on with it
            if leaf.by_row or leaf.width is not None or self.one_row:
                lines.append(f"tl.store({address}, {stored}, mask={' & '.join(masks)})")
            else:
                lines += ["if (col == 0) & (grp == 0):", f"    tl.store({address}, {stored})"]
        lines += ["tl.store(done_out + rows, done, mask=live & first)", "tl.store(lengths_out + rows, lengths, mask=live & first)"]
        if emits:
            lines.append("for s in range(t, T):  # emits behind the end are zero")
            for _, node, name in emits:
                for part, column in self.step.stored(node):
                    address, mask = self._emit_address(name, node, part, column, "(s - t0).to(tl.int64)")
                    lines.append(f"    tl.store({address}, {self._zero(self.width(part), value(node).dtype)}, mask={mask})")
        return lines


def _element(dtype: torch.dtype) -> str:
    """Triton's name of what a pointer points to."""
    return {
        torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.bool: "u8", torch.uint8: "u8", torch.int8: "i8",
        torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.float8_e4m3fn: "u8",
    }[dtype]  # fmt: skip


def _batched(names: list[str], size: int) -> list[list[str]]:
    return [names[at : at + size] for at in range(0, len(names), size)]
