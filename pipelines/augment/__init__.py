"""The two-view augmentation."""
