"""The page of ``vssl report``: its measurements, its verdict, and its templates."""
