"""The engine: the step, how it is compiled and captured, and the loop around it."""
