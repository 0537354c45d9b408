"""The page of results: a script that fails is listed and does not stop the others."""

import importlib.util

from e2i_dagster.policy_files.environment import CHECKOUT

GOOD = """
print("progress")
print('{"benchmark": "good", "figures": {"ratio": {"value": 1.2, "unit": "x", "goal": 1.6, "peer": "bare", '
      '"holds": true}}, "machine": {"cpus": 2, "platform": "any", "python": "3"}}')
"""


def runner(folder, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmarks_run", CHECKOUT / "benchmarks/run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", folder)
    return module


def test_failures_are_listed_beside_figures(tmp_path, monkeypatch):
    run = runner(tmp_path, monkeypatch)
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "broken.py").write_text("print('begun'); raise SystemExit('no server')")
    (tmp_path / "wordy.py").write_text(GOOD.replace('"goal": 1.6', '"goal": ">= 1.6"'))
    (tmp_path / "ranged.py").write_text(GOOD.replace('"goal": 1.6', '"goal": [1.1, 1.6]'))
    results = [run.result_of(script) for script in run.scripts([])]
    page = run.render(results)
    assert "| good | ratio | 1.2 x | 1.6 x | bare | yes |" in page
    assert "| good | ratio | 1.2 x | 1.1 to 1.6 x | bare | yes |" in page
    assert "| broken | failed | | | ended with 1 and without figures | no |" in page
    assert "| wordy | failed | | | ended with 0 and without figures | no |" in page
    assert not run.succeeded(results)
    assert run.succeeded([one for one in results if "failed" not in one])


def test_a_missed_goal_is_no_success(tmp_path, monkeypatch):
    run = runner(tmp_path, monkeypatch)
    (tmp_path / "slow.py").write_text(GOOD.replace("true", "false").replace('"good"', '"slow"'))
    results = [run.result_of(script) for script in run.scripts(["slow"])]
    assert "| slow | ratio | 1.2 x | 1.6 x | bare | no |" in run.render(results)
    assert not run.succeeded(results)
