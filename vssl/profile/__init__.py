"""What ``vssl throughput`` measures: the stages of a run, the floors of the hardware, and how to time them."""
