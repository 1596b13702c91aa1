"""Shared by engine and evaluation: device, precision, CUDA graphs, processes."""
