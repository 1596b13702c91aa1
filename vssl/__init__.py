"""Variational Self-Supervised Learning: the method, its models, and the engine that trains them."""
