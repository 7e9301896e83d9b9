"""torch.compile of a whole loop gives what fusedrnn does."""

import pytest
import torch

from bench.case import Missing
from bench.loops import Greedy, Reads
from bench.peers import eager, inductor


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_loops():
    torch.manual_seed(0)
    with torch.no_grad():
        reads, greedy = Reads.made("lstm", 6, 3, 5, torch.float32), Greedy.made("lstm", 6, 11, 3, 5, torch.float32)
        expected, tokens = (work.loop("reference")().emit_ta.stack() for work in (reads, greedy))
        for run in (inductor.reads(reads), eager.compiled_step(reads)):
            torch.testing.assert_close(run.results(), [expected])
        for run in (inductor.greedy(greedy), eager.greedy_compiled_step(greedy)):
            assert torch.equal(run.results()[0], tokens)


def test_what_does_not_compile_is_missing(monkeypatch):
    def fails(run, **options):
        return lambda: (_ for _ in ()).throw(RuntimeError("no such operator\nand more"))

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(Missing, match=r"torch.compile of while_loop fails here: RuntimeError: no such operator$"):
        inductor.reads(Reads.made("lstm", 6, 3, 5, torch.float32))
