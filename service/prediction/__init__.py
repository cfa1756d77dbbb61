"""Predictions: what waits, in whose turn, in which batch, by which network in memory."""
