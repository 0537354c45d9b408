"""Invented requests, made from the signature and its invented example: no row of any data set goes into them."""

from __future__ import annotations

import json
import shlex
from typing import Any

from e2i_dagster.serving.request_schema import Feature, FeatureType, Signature

#: A plausible shape, no plausible patient.
_INVENTED: dict[FeatureType, Any] = {"double": 1.5, "long": 1, "string": "example", "boolean": False}


def example_row(signature: Signature) -> dict[str, Any]:
    """A body of ``/predict`` with a value of the right type for every feature."""
    return {"features": {feature.name: _value(feature) for feature in signature.features}}


def _value(feature: Feature) -> Any:
    return _INVENTED[feature.type] if feature.example is None else feature.example


def example_batch(signature: Signature, rows: int = 2) -> dict[str, Any]:
    """A body of ``/predict_batch`` with ``rows`` equal rows."""
    return {"instances": [example_row(signature) for _ in range(rows)]}


def curl(url: str, model_name: str, signature: Signature) -> str:
    """A line for the shell that asks the model ``model_name`` of the service at ``url``."""
    body = json.dumps(example_row(signature), separators=(",", ":"))
    return f"curl -s {url}/{model_name}/predict -H 'content-type: application/json' -d {shlex.quote(body)}"
