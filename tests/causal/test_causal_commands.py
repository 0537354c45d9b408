"""What a user types: `e2i causal ...`, good and bad."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from commands.cli import main
from e2i_dagster.causal.registration import EffectModel
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.versions import ledger
from e2i_dagster.versions.lake import Lake

ASKED = ("--treatment", "treated", "--outcome", "outcome", "--confounders", "severity,academic")


def typed(*arguments: str | Path):
    return CliRunner().invoke(main, ["causal", *map(str, arguments)])


def never_treated(rows=1_500):
    """Half can never be treated: the treated have controls like them, everyone has not. ATT about 0.2."""
    generator = np.random.default_rng(1)
    severity, never = generator.normal(size=rows), generator.random(rows) < 0.5
    treated = generator.random(rows) < np.where(never, 0.005, 1 / (1 + np.exp(-0.6 * severity)))

    def chance(t):
        return 1 / (1 + np.exp(-(-0.6 + severity + never + t)))

    frame = pd.DataFrame({"severity": severity, "academic": never, "treated": treated})
    frame["outcome"] = (generator.random(rows) < chance(treated)).astype(int)
    frame.attrs["att"] = float((chance(1) - chance(0))[treated].mean())
    return frame


@pytest.fixture(scope="module")
def files(plant, tmp_path_factory):
    """Files of planted patients, and a configuration whose forest and refuters are cheaper."""
    folder = tmp_path_factory.mktemp("own")
    frame = plant(1.5, rows=500).assign(gender=lambda one: np.where(np.arange(len(one)) % 2, "F", "M"))
    given = {
        "good": frame,
        "one_level": frame.assign(treated=True),
        "separated": frame.assign(treated=frame["severity"] > 0),
        "twenty": frame.head(20),
        "apart": plant(1.0, confounding=4.0),
        "never": never_treated(),
        "unknown": frame.assign(outcome=frame["outcome"].astype(float).where(frame.index > 2)),
    }
    for name, one in given.items():
        one.to_csv(folder / f"{name}.csv", index=False)
    frame.to_parquet(folder / "good.parquet")
    (folder / "broken.parquet").write_bytes(b"no parquet")
    policy = yaml.safe_load((CHECKOUT / "config/causal.yaml").read_text())
    policy |= {"forest_trees": 20, "bootstrap_draws": 200}
    policy["refutation"]["repetitions"] = 3
    config = folder / "config"
    config.mkdir()
    for path in (CHECKOUT / "config").iterdir():
        (config / path.name).symlink_to(path)
    (config / "causal.yaml").unlink()
    (config / "causal.yaml").write_text(yaml.safe_dump(policy))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2I_CONFIG", str(config))
        yield folder


def test_a_file_of_ones_own(files, tmp_path):
    page = tmp_path / "effect.html"
    told = typed("study", files / "good.csv", *ASKED, "--negative-controls", "gender", "--page", page)
    assert told.exit_code == 0, told.output
    for word in (
        "econml LinearDRLearner", "econml DRLearner", "econml CausalForestDML", "dowhy", "causalml",
        "econml LinearDML", "Consensus", "agreement 100%", "placebo_treatment", "500 patients", "Who to treat",
    ):  # fmt: skip
        assert word in told.output, word
    assert "forest plot" in page.read_text()


def test_an_absent_library_is_named_and_the_rest_answer(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "causalml", None)
    told = typed("study", files / "good.parquet", *ASKED, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["estimates"]["found"]
    states = {one["library"]: one for one in found["effects"]["estimates"]}
    assert states["causalml"]["state"] == "unavailable"
    assert states["causalml"]["point"] is None
    assert "causalml BaseDRLearner" in found["left_out"]
    assert "causalml BaseDRLearner" not in found["libraries"]
    assert found["consensus_effect"] is not None


@pytest.mark.parametrize(
    ("file", "code", "words"),
    [
        ("one_level.csv", 3, "has one level (all treated)"),
        ("separated.csv", 4, "confounders tell treated from control almost perfectly"),
        ("apart.csv", 4, "of the rows have a propensity outside [0.02, 0.98], at most 10%"),
        ("twenty.csv", 4, "20 rows, of which the smaller arm has"),
        ("unknown.csv", 3, "3 of 500 rows have none"),
        ("broken.parquet", 3, "not readable as Parquet"),
        ("absent.csv", 2, "does not exist"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(files, file, code, words):
    told = typed("study", files / file, *ASKED)
    assert told.exit_code == code, told.output
    assert words in " ".join(told.output.split())
    assert "Consensus" not in told.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--confounders", "severity,age"), "no column 'age'"),
        (("--negative-controls", "sex"), "no column 'sex' for a negative control"),
        (("--negative-controls", "severity"), "severity: named as negative control"),
    ],
)
def test_columns_that_are_not_there_are_named(files, arguments, words):
    told = typed("study", files / "good.csv", *ASKED, *arguments)
    assert told.exit_code == 3
    assert words in told.output


@pytest.mark.parametrize(
    ("last", "code", "words"),
    [
        ("2024-03-02", 0, "visit holds days and is adjusted for as such"),
        ("05/01/2024", 3, "visit has 1 value(s) that cannot be used, the first in row 500: ambiguous_date"),
        ("2999-01-01", 3, "row 500: lies in the future"),
    ],
)
def test_an_undeclared_confounder_of_days_is_one_of_days(files, tmp_path, last, code, words):
    frame = pd.read_csv(files / "good.csv")
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(range(len(frame)), unit="D")
    frame["visit"] = [*days.strftime("%Y-%m-%d")[:-1], last]
    frame.to_csv(tmp_path / "dated.csv", index=False)
    told = typed("study", tmp_path / "dated.csv", *ASKED[:-1], f"{ASKED[-1]},visit")
    assert told.exit_code == code, told.output
    assert words in " ".join(told.output.split())


@pytest.mark.parametrize(
    ("cells", "arguments", "words"),
    [
        ("days", ("--outcome", "x"), "Outcome 'x' holds days; expected numbers or booleans."),
        ("days", ("--treatment", "x"), "Treatment 'x' holds days; expected 0/1 or false/true."),
        ("words", ("--negative-controls", "x"), "Negative control 'x' has 500 levels, more than"),
        (
            "huge",
            ("--outcome", "x"),
            "Outcome 'x': 1 of 500 cells are no number or boolean, the first in row 3.",
        ),
        ("days", ("--treatment", "treatd"), "Did you mean 'treated'?"),
    ],
)
def test_a_column_that_cannot_serve_is_told_with_file_column_and_what_to_do(
    files, tmp_path, cells, arguments, words
):
    frame = pd.read_csv(files / "good.csv")
    days = (pd.Timestamp("2024-01-01") + pd.to_timedelta(range(len(frame)), unit="D")).strftime("%Y-%m-%d")
    words_of = [f"w{place}" for place in range(len(frame))]
    numbers = ["1.5"] * len(frame)
    numbers[2] = "1e400"
    frame["x"] = {"days": days, "words": words_of, "huge": numbers}[cells]
    frame.to_csv(tmp_path / "own.csv", index=False)
    told = typed("study", tmp_path / "own.csv", *ASKED, *arguments, "--json")
    assert told.exit_code == 3, told.output
    error = json.loads(told.stdout)["error"]
    assert words in error["message"] and error["remedy"] in error["message"]
    assert error["file"] == str(tmp_path / "own.csv") and error["field"] == arguments[1]


def test_a_negative_control_of_days_is_one_of_days(files, tmp_path):
    frame = pd.read_csv(files / "good.csv")
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(len(frame)) % 90, unit="D")
    frame["visit"] = days.strftime("%Y-%m-%d")
    frame.to_csv(tmp_path / "dated.csv", index=False)
    told = typed("study", tmp_path / "dated.csv", *ASKED, "--negative-controls", "visit", "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    calibration = record["estimates"]["calibration"]
    assert [one["outcome"] for one in calibration["controls"]] == ["visit"] and not calibration["left_out"]
    assert any("visit holds days and is judged as such" in note for note in record["notes"])


def test_not_estimable_as_json_has_the_figure_and_no_effect(files):
    told = typed("study", files / "apart.csv", *ASKED, "--json")
    assert told.exit_code == 4
    effects = json.loads(told.stdout)["estimates"]["found"]["effects"]
    assert effects["state"] == "not_estimable"
    assert effects["overlap"]["share_outside"] > 0.10
    assert effects["estimates"] == []


def offered(told) -> list[list[str]]:
    """The options that the message names, as typed."""
    return [shlex.split(one) for one in re.findall(r"`(--[^`]+)`", told.stderr)]


@pytest.mark.parametrize(
    ("file", "ways"),
    [
        ("apart.csv", [["--trim", "0.1,0.9"]]),
        ("never.csv", [["--trim", "0.1,0.9"], ["--estimand", "att"]]),
        ("unknown.csv", [["--missing-outcome", "drop"]]),
    ],
)
def test_every_way_out_that_a_message_offers_is_one(files, file, ways):
    refused = typed("study", files / file, *ASKED)
    assert refused.exit_code in (3, 4)
    assert offered(refused) == ways
    for way in ways:
        told = typed("study", files / file, *ASKED, *way, "--json")
        assert told.exit_code == 0, told.output
        effects = json.loads(told.stdout)["estimates"]["found"]["effects"]
        left_out = effects["trimmed"] if "--trim" in way else effects["dropped"]
        assert ("--estimand" in way) is (effects["estimand"] == "att") is (left_out == 0)
        assert effects["rows"] + left_out == len(pd.read_csv(files / file))
        (lower, upper) = json.loads(told.stdout)["estimates"]["found"]["consensus_interval"]
        assert lower > 0
        if "--estimand" in way:
            assert lower < never_treated().attrs["att"] < upper


def test_without_overlap_the_naive_figure_is_shown_as_what_it_is(files, tmp_path):
    page = tmp_path / "effect.html"
    told = typed("study", files / "apart.csv", *ASKED, "--page", page)
    frame = pd.read_csv(files / "apart.csv")
    means = frame.groupby("treated")["outcome"].mean()
    naive = f"Unadjusted difference of the arms {means[True] - means[False]:.3f}"
    assert naive in told.stdout and "This is not the effect" in told.stdout
    assert naive in page.read_text()
    separated = typed("study", files / "separated.csv", *ASKED)
    assert separated.exit_code == 4 and not offered(separated)


@pytest.mark.parametrize("bounds", ["0.9,0.1", "0.1", "a,b", "-1,0.5"])
def test_bounds_that_are_none_are_refused(files, bounds):
    told = typed("study", files / "apart.csv", *ASKED, f"--trim={bounds}")
    assert told.exit_code == 2
    assert bounds in told.stderr and "such as 0.1,0.9" in told.stderr


# Scopes


@pytest.fixture
def lake(database, tmp_path, monkeypatch) -> SimpleNamespace:
    monkeypatch.setenv("E2I_LAKE", str(tmp_path / "lake"))
    return SimpleNamespace(lake=Lake(str(tmp_path / "lake")), warehouse=database)


def store_model(place: SimpleNamespace, model: EffectModel) -> None:
    stored = place.lake.write("effect_model", model.scope, model)
    version = ledger.DataVersion(
        "effect_model", model.scope, stored.digest, stored.rows, stored.schema_hash, path=stored.path
    )
    ledger.record(place.warehouse, version)


@pytest.mark.parametrize("command", ["show", "deploy"])
def test_a_scope_without_an_estimate_says_what_to_run(lake, command):
    told = typed(command)
    assert told.exit_code == 3
    assert f"Run `e2i causal estimate --scope {current_policy().default_scope}`" in told.output


def test_a_model_that_is_not_promoted_is_not_deployed(lake):
    scope = current_policy().default_scope
    store_model(lake, EffectModel(scope=scope, state="not_promoted", reasons=("the effect is a null.",)))
    told = typed("deploy")
    assert told.exit_code == 4
    assert "is not promoted: the effect is a null." in told.output
    with lake.warehouse.connect() as connection:
        assert not ledger.states(connection, "effect_deployment")


@pytest.mark.parametrize("command", [("estimate",), ("show",), ("deploy",), ("report", "page.html")])
def test_an_unknown_scope_is_named(command):
    told = typed(*command, "--scope", "nonsense")
    assert told.exit_code in (2, 3)
    assert "nonsense" in told.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"required_refuters": ["magic"]}, "required_refuters"),
        ({"maximum_slope_p_value": 0.9}, "maximum_slope_p_value"),
        ({"groups": 1}, "groups"),
        ({"speed": 1}, "speed"),
    ],
)
def test_wrong_limits_are_named(tmp_path, change, words):
    given = yaml.safe_load((CHECKOUT / "config/causal.yaml").read_text())
    given["effect_model"] |= change
    (tmp_path / "causal.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigError, match=words):
        CausalPolicy.load(tmp_path)
