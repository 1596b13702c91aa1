#!/usr/bin/env python
"""``vssl train`` in a checkout, where nothing need be installed."""

from pipelines.errors import run_command
from vssl.commands.train import main

if __name__ == "__main__":
    run_command(main)
