"""Planted effects in small frames, and the product's own policy with few trees and draws."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.policy_files.environment import CHECKOUT

CONFOUNDERS = ["severity", "academic"]


@pytest.fixture(scope="session")
def causal_policy() -> CausalPolicy:
    """The shipped policy, cheaper."""
    shipped = CausalPolicy.load(CHECKOUT / "config")
    return shipped.model_copy(update={"forest_trees": 40, "bootstrap_draws": 400})


def planted(effect: float, rows: int = 1_200, seed: int = 7, confounding: float = 0.8) -> pd.DataFrame:
    """A binary outcome with a constant effect on the logit; severity drives treatment and outcome."""
    generator = np.random.default_rng(seed)
    severity = generator.normal(size=rows)
    academic = generator.random(rows) < 0.4
    logit = confounding * severity + 0.4 * academic - 0.2
    treated = generator.random(rows) < 1 / (1 + np.exp(-logit))

    def chance(t: np.ndarray | int) -> np.ndarray:
        return 1 / (1 + np.exp(-(-0.6 + 1.2 * severity + 0.5 * academic + effect * np.asarray(t))))

    outcome = generator.random(rows) < chance(treated)
    frame = pd.DataFrame(
        {"severity": severity, "academic": academic, "treated": treated, "outcome": outcome.astype(int)}
    )
    frame.attrs["ate"] = float((chance(1) - chance(0)).mean())
    return frame


@pytest.fixture(scope="session")
def plant() -> Callable[..., pd.DataFrame]:
    return planted
