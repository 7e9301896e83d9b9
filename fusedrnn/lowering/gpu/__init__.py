"""A loop as one persistent Triton kernel. In: an optimised program and a plan; out: source, and what its launch has to be handed."""
