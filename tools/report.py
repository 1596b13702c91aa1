#!/usr/bin/env python
"""Run ``vssl report`` from a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.errors import run_command
from vssl.commands.report import main

if __name__ == "__main__":
    run_command(main)
