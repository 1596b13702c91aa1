"""Programs; each is run as a file."""
