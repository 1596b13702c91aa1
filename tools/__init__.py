"""Programs, each run as a file, and what they share."""
