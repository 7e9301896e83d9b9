"""What is measured, against whom. ``python -m bench`` from the root of the repository."""
