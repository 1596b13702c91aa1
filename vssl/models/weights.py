"""Weights of a backbone from a file of this project, of torchvision or of timm. No code in a file is executed."""

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pipelines.errors import UserError

__all__ = ["backbone_weights", "fit_backbone", "load_backbone_weights", "read_tensors", "read_weights"]

# Keys under which training programs save the state dict, and prefixes that wrappers put before its keys.
_CONTAINERS = ("state_dict", "model", "model_state", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")


def load_backbone_weights(backbone: nn.Module, path: str | Path) -> str:
    """Load weights from a file (``read_weights``, ``fit_backbone``) or from the export in a run directory.

    Returns:
        what was left out, one line; empty: nothing.

    Raises:
        UserError: the file cannot be read or does not fit the backbone.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "backbone.safetensors"  # a run writes it at its end
    return fit_backbone(backbone, read_weights(path), path)


def read_weights(path: Path) -> Any:
    """``read_tensors``, whose errors then name the file."""
    try:
        return read_tensors(path)
    except UserError as error:
        raise UserError(f"cannot read the weights {path}: {error}") from error


def read_tensors(path: Path) -> Any:
    """The content of a ``.safetensors`` file or one of ``torch.save``, on the CPU; its checksums, if any, are verified.

    Raises:
        UserError: the file is absent or damaged, or holds more than tensors and plain values. The message is the reason
            alone.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _verify(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that many programs save beside
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error
    except Exception as error:  # torch.load raises many kinds for an incomplete file or one of another kind
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise UserError(
                f"it holds {found[1]}, not tensors alone, and no code in a file is executed; save the state dict "
                "alone, torch.save(model.state_dict(), FILE)"
            ) from error
        raise UserError(f"not a whole file of safetensors or torch.save ({type(error).__name__})") from error


def _verify(path: Path) -> None:
    """torch.save writes a CRC-32 for each tensor, which torch.load does not look at."""
    if zipfile.is_zipfile(path):  # files of old versions of torch are not
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"the checksum of {damaged} does not match")


def fit_backbone(backbone: nn.Module, content: Any, source: Path) -> str:
    """Load the result of ``read_weights``. The state dict may lie in a checkpoint, a common prefix (``module.``, ...)
    is removed, and the classifier is left out. All else must fit exactly; only the unused ``num_batches_tracked`` may
    be absent.

    Args:
        content: a state dict, or a checkpoint that holds one: of this project or of another program.
        source: the file, for messages.

    Returns:
        what was left out, one line; empty: nothing.

    Raises:
        UserError: there is no state dict, a key is missing or unexpected, or a tensor has another shape.
    """
    expected = backbone.state_dict()
    weights, ignored = _own_keys(_state_dict(content, source), expected, _classifiers(backbone))
    counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    weights = counters | weights
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    shapes = {key: (list(weights[key].shape), list(own.shape)) for key, own in expected.items() if key in weights}
    unlike = {key: (given, own) for key, (given, own) in shapes.items() if given != own}
    if missing or unexpected or unlike:
        _refuse(source, missing, unexpected, unlike)
    backbone.load_state_dict(weights, strict=True)
    return f"{source}: ignored: {', '.join(ignored)}" if ignored else ""


def _state_dict(content: Any, source: Path) -> dict[str, Tensor]:
    while isinstance(content, dict) and content:
        if all(isinstance(value, Tensor) for value in content.values()):
            return content
        if isinstance(content.get("method"), dict):  # a checkpoint of this project
            return backbone_weights(content["method"])
        inner = [content[key] for key in _CONTAINERS if isinstance(content.get(key), dict)]
        if not inner:
            raise UserError(f"{source} holds no state dict, only {_first(list(map(str, content)))}")
        content = inner[0]
    raise UserError(f"{source} holds no state dict")


def backbone_weights(method: dict[str, Tensor], *, teacher: bool = False) -> dict[str, Tensor]:
    """The backbone's part of a method's state dict, with the backbone's own keys: the student's, or the teacher's,
    which is empty if there is none."""
    prefix = "teacher.network.backbone." if teacher else "student.backbone."
    return {key.removeprefix(prefix): value for key, value in method.items() if key.startswith(prefix)}


def _classifiers(backbone: nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifier's keys; the backbone has no classifier."""
    names = getattr(backbone, "pretrained_cfg", {"classifier": "fc"}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _own_keys(
    weights: dict[str, Tensor], expected: dict[str, Tensor], classifiers: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights without prefixes and without the classifier's, and the keys of those."""
    ignored = []
    while True:
        left_out = [key for key in weights if key.startswith(classifiers) and key not in expected]
        ignored += left_out
        weights = {key: value for key, value in weights.items() if key not in left_out}
        common = [prefix for prefix in _PREFIXES if weights and all(key.startswith(prefix) for key in weights)]
        if not common or any(key.startswith(common[0]) for key in expected):
            return weights, ignored
        weights = {key.removeprefix(common[0]): value for key, value in weights.items()}


def _refuse(
    source: Path, missing: list[str], unexpected: list[str], unlike: dict[str, tuple[list[int], list[int]]]
) -> NoReturn:
    """Raise the error that names the first keys that do not fit. ``unlike``: by key, the shape given and the one
    expected."""
    shapes = [f"{key} is {given}, not {own}" for key, (given, own) in unlike.items()]
    kinds = {"missing": missing, "unexpected": unexpected, "shape": shapes}
    parts = [f"{kind}: {_first(keys)}" for kind, keys in kinds.items() if keys]
    if not missing and not unexpected:
        parts += _hints(unlike)
    raise UserError(f"{source} does not fit model.backbone: {'; '.join(parts)}")


def _hints(unlike: dict[str, tuple[list[int], list[int]]]) -> list[str]:
    """The keys to set, if only these shapes are wrong."""
    stems = {7: "imagenet", 3: "cifar"}  # by the side of conv1's kernel
    if list(unlike) == ["conv1.weight"]:
        given, own = (stems.get(shape[-1]) for shape in unlike["conv1.weight"])
        if given and own:
            return [f"it has the stem for {given} and the network that for {own}: set model.stem={given}"]
    if all("pos_embed" in key for key in unlike):
        return ["position embeddings depend on data.image_size: set that of the file"]
    return []


def _first(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
