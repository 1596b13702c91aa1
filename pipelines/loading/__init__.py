"""Loaders: the order of samples, and how batches reach the device."""
