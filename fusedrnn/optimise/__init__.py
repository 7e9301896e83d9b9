"""Rewrites of a step graph, and what can be found out about it: small passes over `torch.fx.Graph`, each in a file of its kind."""
