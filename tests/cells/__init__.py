"""Tests of fusedrnn.cells, one file a concept."""
