"""What ``throughput`` measures: the stages of a step, the floors of the hardware, and how to time them."""
