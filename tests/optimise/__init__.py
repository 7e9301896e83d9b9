"""Passes over step graphs."""
