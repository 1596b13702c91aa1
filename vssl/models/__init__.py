"""Networks: backbones, heads, norms and the moving average."""
