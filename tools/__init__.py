"""Command-line programs, each run as a file, and the modules that they share."""
