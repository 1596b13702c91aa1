"""Data: sources, packed formats, loaders and the augmentation into views. Independent of methods and training."""
