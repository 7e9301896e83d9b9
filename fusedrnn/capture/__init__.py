"""From a cell and a loop_fn to a graph of one step: `step` captures, `closure` tells what they close over, `cache` keeps programs."""
