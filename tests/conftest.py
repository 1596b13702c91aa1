"""Small real data and small configs, shared by the tests."""

import os

# Small tensors gain nothing from threads, and threads that wait for each other in a busy machine lose much. Set before
# torch is imported, and inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from pipelines.convert import convert


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A packed data set: scikit-learn's digits, resident format."""
    out = tmp_path_factory.mktemp("packed") / "digits"
    convert("digits", None, out, format="resident", workers=1)
    return out


def small_config(data_dir, run_dir, *overrides):
    """A run of a few seconds on the digits; overrides are ``key=value``."""
    from vssl.config import load_config

    settings = [
        f"data.dir={data_dir}",
        f"run.dir={run_dir}",
        "data.limit=320",
        "data.batch_size=32",
        "data.image_size=8",
        "model.projector_hidden=32",
        "model.predictor_hidden=16",
        "model.latent=8",
        "train.epochs=2",
        "train.compile=false",
        "train.device=cpu",
        "train.log_every=4",
        "eval.every=0",
    ]
    return load_config("configs/demo.yaml", [*settings, *overrides])


@pytest.fixture
def config(digits, tmp_path):
    """``config(*overrides)``: a small config whose run directory is ``tmp_path / "run"`` unless overridden."""
    return lambda *overrides: small_config(digits, tmp_path / "run", *overrides)
