"""Choice of an algorithm: registry, filters, benchmark, ranking, rationale.

Here belongs why one algorithm is chosen. What models are made of is in ``modelling``, rows are in ``splits.rows``.
"""

from e2i_dagster.selection.choose import AlgorithmChoice, Candidate, select_algorithm
from e2i_dagster.selection.request import SelectionRequest, request_of

__all__ = ["AlgorithmChoice", "Candidate", "SelectionRequest", "request_of", "select_algorithm"]
