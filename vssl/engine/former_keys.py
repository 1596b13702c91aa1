"""Configs that earlier versions wrote: keys that this version no longer has."""

from typing import Any, NamedTuple

from pipelines.errors import UserError
from vssl.optim import OPTIMIZERS, find_optimizer

__all__ = ["FORMER_KEYS", "FormerKey", "drop_former_keys"]


class FormerKey(NamedTuple):
    """A key that was removed."""

    default: Any  # its former default, which this version still does
    meaning: str  # its former meaning, for the message


# By section.key. To remove a key from a section, add a line.
FORMER_KEYS: dict[str, FormerKey] = {
    "method.decoupled": FormerKey(True, "false: the gradient of Gaussian means depended on the variances"),
    "method.teacher_statistics": FormerKey("batch", "moving: the teacher's BatchNorm used moving averages"),
}

# Every optimizer had all these keys, whether it used them or not.
_FORMER_OPTIM = {"momentum": 0.9, "eta": 0.02}
_FORMER_OPTIM_KEYS = {"name", "lr", "weight_decay", "warmup_epochs", *_FORMER_OPTIM}


def drop_former_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The nested dict of a config file, or of the config in a checkpoint, without the keys that this version no longer
    has, if they have their former defaults: then they change nothing.

    Raises:
        UserError: such a key has another value.
    """
    kept = {name: dict(keys) if isinstance(keys, dict) else keys for name, keys in values.items()}
    for key, former in FORMER_KEYS.items():
        section, _, name = key.partition(".")
        keys = kept.get(section)
        if isinstance(keys, dict) and name in keys and keys.pop(name) != former.default:
            raise UserError(f"{key}={values[section][name]}: this version has no such key any more ({former.meaning})")
    if isinstance(kept.get("optim"), dict):
        kept["optim"] = _present_optim(kept["optim"], kept.get("train"))
    return kept


def _present_optim(optim: dict[str, Any], train: Any) -> dict[str, Any]:
    """The section ``optim`` in this version's terms.

    In a whole section of the former kind, as runs wrote it, ``warmup_epochs`` is an upper bound: the warm-up was
    shortened to a tenth of the run. Its default, 10, is now written as null.
    """
    present = dict(optim)
    chosen = optim.get("name")
    if isinstance(chosen, str) and chosen in OPTIMIZERS:
        owned = find_optimizer(chosen).Options.__dataclass_fields__
        for name, default in _FORMER_OPTIM.items():
            if name not in owned and optim.get(name) == default:
                del present[name]
    warmup, epochs = optim.get("warmup_epochs"), train.get("epochs") if isinstance(train, dict) else None
    if optim.keys() == _FORMER_OPTIM_KEYS and isinstance(warmup, float) and isinstance(epochs, int):
        present |= {"warmup_epochs": None if warmup == 10.0 else min(warmup, 0.1 * epochs), "final_weight_decay": None}
    return present
