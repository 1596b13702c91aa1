"""What engine and evaluation both stand on: device, precision, CUDA graphs, processes."""
