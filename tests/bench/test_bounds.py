"""The guard: ratios against peers in the same run, each with the least that it may be."""

from bench import bounds, cases
from bench.case import text


def test_every_bound_is_of_a_shape_and_peer_that_the_quick_run_has():
    for case, shape, peer in bounds.LEAST:
        made = cases.case(case)
        (found,) = [one for one in made.shapes(quick=True) if text(one) == shape]
        assert made.peers[peer].where(found)


def row(ratio, peer="eager loop"):
    return {"case": "layer_norm", "shape": {"H": 256, "B": 1, "T": 64}, "peer": peer, "ratio": ratio}


def test_ratios_at_their_bound_pass_and_below_it_do_not():
    least = bounds.LEAST["layer_norm", "H=256 B=1 T=64", "eager loop"]
    assert bounds.broken([row(least)]) == []
    assert bounds.broken([row(least - 0.01)]) == [
        f"layer_norm H=256 B=1 T=64: {least - 0.01:.2f} times as fast as eager loop, at least {least} is asked for"
    ]


def test_a_peer_that_did_not_run_is_told_and_a_case_that_was_not_asked_for_is_not():
    assert bounds.broken([row(9.0, peer="JAX scan")]) == ["layer_norm H=256 B=1 T=64: no ratio to eager loop, at least 4.0 is asked for"]
    assert bounds.broken([]) == []
