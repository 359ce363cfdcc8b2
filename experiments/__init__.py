"""Experiments that are no speed benchmark: `python -m experiments.<name>`."""
