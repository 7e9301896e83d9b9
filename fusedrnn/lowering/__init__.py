"""From a step graph to C++: `operators` and `pointwise` say how one operator is written, `stages` when, `source` puts a loop together."""
