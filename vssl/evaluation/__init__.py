"""Evaluation of a frozen encoder, and what watches one learn."""

from vssl.evaluation.config import EvalConfig
from vssl.evaluation.features import extract_features
from vssl.evaluation.knn import knn_predict
from vssl.evaluation.offline import OfflineEvaluation
from vssl.evaluation.online import OnlineEvaluation
from vssl.evaluation.probe import OnlineProbe

__all__ = ["EvalConfig", "OfflineEvaluation", "OnlineEvaluation", "OnlineProbe", "extract_features", "knn_predict"]
