"""Data: sources, packed formats, loaders and the augmentation into views. Knows nothing of methods or training."""
