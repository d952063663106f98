"""Sweeps over hyperparameters and seeds, on one machine or a cluster."""
