"""What tools/compare.py measures: this project beside its peers."""
