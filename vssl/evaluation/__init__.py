"""Evaluation of a frozen encoder, and what watches one learn."""
