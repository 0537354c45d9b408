"""Training: search, fit, calibration, evaluation. One fitted pipeline is the model."""

from e2i_dagster.training.evaluate import Evaluation, evaluate
from e2i_dagster.training.fit import TrainedModel, train
from e2i_dagster.training.search import SearchResult, search_hyperparameters

__all__ = [
    "Evaluation",
    "SearchResult",
    "TrainedModel",
    "evaluate",
    "search_hyperparameters",
    "train",
]
