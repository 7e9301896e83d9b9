"""Derivatives of loops."""
