"""Everything that measures: throughput, loaders and their peers, methods side by side, the step."""
