"""From a step graph to C++: `locality` finds the rows, `pointwise` and `operators` say how one operator is written, `source` puts a loop together."""
