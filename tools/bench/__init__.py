"""Measurements of the library itself: loaders and their peers, methods side by side, the step."""
