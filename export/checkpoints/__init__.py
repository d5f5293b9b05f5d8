"""Narrow models of every family, for golden_checkpoints.py: configs, weights and the names that files give them."""
