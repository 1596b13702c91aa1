"""The page of ``vssl report``: what it measures of runs, what it concludes, and its templates."""
