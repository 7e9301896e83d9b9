"""Tests of fusedrnn.kernels."""
