"""The page of ``tools/report.py``: what it measures of runs, what it concludes, and its HTML."""
