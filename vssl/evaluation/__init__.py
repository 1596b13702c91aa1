"""Evaluation of a frozen encoder, and of an encoder while it trains."""
