"""Which plan is taken, by what compiling the plans gives."""

from types import SimpleNamespace

import pytest

from fusedrnn.lowering.gpu.rule import Unlowered
from fusedrnn.plan.choice import chosen

LIMIT = 1000


def plan(place, tile, resident=True, stacked=1):
    tiles = [SimpleNamespace(vectors=stacked)]
    return SimpleNamespace(programs=8, batch_tile=tile, resident=resident, ahead=True, place=place, schedule=SimpleNamespace(tiles=tiles))


def plans(count, streamed=()):
    return [plan(place, 16 << place, place not in streamed) for place in range(count)]


def choice(*found, streamed=(), **options):
    """The choice among kernels (spill bytes, shared bytes) or what the compiler says, and how many of them were compiled."""
    made, compiled = plans(len(found), streamed), []

    def compile_plan(plan):
        compiled.append(plan)
        numbers = found[made.index(plan)]
        return numbers if isinstance(numbers, str) else SimpleNamespace(spill_bytes=numbers[0], shared_bytes=numbers[1])

    taken = chosen(made, compile_plan, LIMIT, **options)
    assert taken.plan is made[taken.place]
    assert (taken.measured.spill_bytes, taken.measured.shared_bytes) == found[taken.place]
    return taken, len(compiled)


def test_the_first_that_fits_and_does_not_spill():
    taken, compiled = choice((0, LIMIT), (0, 10))
    assert (taken.place, compiled, taken.passed_over) == (0, 1, ())


def test_spills_are_passed_over():
    taken, compiled = choice((8, 10), (4, 10), (0, 10), (0, 10))
    assert (taken.place, compiled) == (2, 3)
    assert taken.passed_over == ("8 programs of 16 rows: spills 8 bytes a thread", "8 programs of 32 rows: spills 4 bytes a thread")


def test_what_does_not_fit_or_compile_is_passed_over():
    taken, _ = choice((0, LIMIT + 1), "the compiler refuses it", (0, LIMIT))
    assert taken.place == 2
    assert taken.passed_over == (
        "8 programs of 16 rows: needs 1001 bytes of shared memory, there are 1000",
        "8 programs of 32 rows: the compiler refuses it",
    )


def test_where_each_spills_the_least_is_taken_of_the_first_few_that_fit():
    taken, compiled = choice((8, 10), (4, 10), (2, LIMIT + 1), (4, 10), (6, 10), (0, 10), most=4)
    assert (taken.place, compiled) == (1, 5)
    assert len(taken.passed_over) == 4
    taken, compiled = choice((8, 10), (4, 10), (0, 10), most=2)
    assert (taken.place, compiled) == (1, 2)
    taken, compiled = choice((8, 10), (8, 10))
    assert (taken.place, compiled) == (0, 2)


def test_where_all_that_stay_on_chip_spill_one_that_does_not_is_tried():
    taken, compiled = choice((8, 10), (4, 10), (2, 10), (6, 10), (0, 10), (0, 10), streamed=(3, 5), most=2)
    assert (taken.place, compiled) == (5, 4)


@pytest.mark.parametrize(("spills", "tried"), [((300, 200, 100, 0), [0, 3]), ((200, 100, 50, 0), [0, 1, 2, 3])])
def test_where_one_spills_much_only_the_last_that_is_tiled_alike_is_tried(spills, tried):
    compiled = []
    made = [plan(place, 64) for place in range(4)]

    def compile_plan(one):
        compiled.append(one.place)
        return SimpleNamespace(spill_bytes=spills[one.place], shared_bytes=10)

    assert chosen(made, compile_plan, LIMIT).place == 3
    assert compiled == tried


def test_what_stacks_vectors_otherwise_is_tiled_otherwise():
    compiled = []

    def compile_plan(one):
        compiled.append(one.place)
        return SimpleNamespace(spill_bytes=0 if one.place == 3 else 300, shared_bytes=10)

    made = [plan(place, 64, stacked=vectors) for place, vectors in enumerate((4, 4, 2, 4))]
    assert chosen(made, compile_plan, LIMIT).place == 3
    assert compiled == [0, 2, 3]


def test_nothing_fits():
    with pytest.raises(Unlowered, match=r"no layout's kernel fits: .*needs 1001 bytes.*; .*32 rows: the compiler refuses it"):
        choice((0, LIMIT + 1), "the compiler refuses it")
    with pytest.raises(Unlowered, match="there is none"):
        chosen([], lambda plan: "no", LIMIT)
