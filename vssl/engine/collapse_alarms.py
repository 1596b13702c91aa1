"""Signs that a run has stopped learning, and the line that reports each."""

import math
from collections.abc import Mapping

__all__ = ["Alarms"]

COLLAPSED = 0.05  # feature_std; untrained encoders (ResNet-8 to ResNet-50) have 0.2 to 0.4, healthy ones 0.4 to 1
ONE_DIRECTION = 1.05  # effective_rank; 1 is a single direction, the same untrained encoders have 2.7 and more
ON_BOUND = 0.99  # share of the variances
WORSE = 3.0  # standard errors by which the kNN accuracy must be below the untrained encoder's


class Alarms:
    """Reports each problem once per run.

    Args:
        images: how many images the kNN accuracy is measured on.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self._raised: set[str] = set()

    def of_step(self, values: Mapping[str, float]) -> list[str]:
        """New alarms, as text, from the means of the last steps. Metrics that a method does not log are ignored."""
        found = {
            "feature_std": (
                values["feature_std"] < COLLAPSED,
                f"collapse: feature_std is {values['feature_std']:.3f}; the features of all images are nearly the same",
            ),
            "effective_rank": (
                values["feature_std"] >= COLLAPSED and values["effective_rank"] < ONE_DIRECTION,
                f"collapse: effective_rank is {values['effective_rank']:.2f}; all features lie on one line",
            ),
            "grad_norm": (
                values.get("grad_norm", 1.0) == 0,
                "nothing is learned: the gradient is exactly 0; lower optim.lr and start anew",
            ),
            "on_bound": (
                values.get("on_bound", 0.0) > ON_BOUND,
                f"the variance carries no information: {values.get('on_bound', 0.0):.0%} of the log-variances lie on "
                "their bound (method.logvar_bound)",
            ),
        }
        return self._new(found)

    def of_knn(self, untrained: float, trained: float) -> list[str]:
        """New alarms from two kNN accuracies in [0, 1]."""
        error = math.sqrt((untrained * (1 - untrained) + trained * (1 - trained)) / self._images)
        line = f"the encoder got worse: kNN top-1 is {trained:.3f}, it was {untrained:.3f} before training"
        return self._new({"knn": (trained < untrained - WORSE * error, line)})

    def _new(self, found: dict[str, tuple[bool, str]]) -> list[str]:
        new = {name: line for name, (is_found, line) in found.items() if is_found and name not in self._raised}
        self._raised |= set(new)
        return list(new.values())
