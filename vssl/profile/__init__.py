"""Measurements of ``vssl throughput``: the stages of a run, the floors of the hardware, and timing."""
