"""Packed data sets: one module for each format, and what they share."""
