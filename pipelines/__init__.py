"""Data: sources, packed formats, loaders and the two-view augmentation. Knows nothing of methods or training."""
