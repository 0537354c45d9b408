"""What a command says at its end: of a run that failed, and of models that answer or do not."""

import dagster as dg
import pytest

from commands.cli import endpoint_text
from commands.launch import exit_code, failure_record, failure_text
from e2i_dagster.errors import InputError, UnavailableError, VerdictError

ENDPOINT = {
    "model_id": "e2i-one/1", "slot": "staging", "health": "healthy", "reason": None,
    "example": "curl -s http://127.0.0.1:3001/e2i-one/predict",
}  # fmt: skip


def failed_with(error):
    @dg.op
    def busy():
        raise error

    @dg.job
    def work():
        busy()

    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    return work.execute_in_process(run_config=quiet, raise_on_error=False)


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (UnavailableError("Port 3001: end that process."), "busy: Port 3001: end that process.", 5),
        (InputError("hcp_profiles.csv: empty."), "busy: hcp_profiles.csv: empty.", 3),
        (ZeroDivisionError("of ours: a defect"), "busy: ZeroDivisionError: of ours: a defect", 1),
    ],
)
def test_a_failure_is_told_in_the_words_of_its_message(error, said, code):
    result = failed_with(error)
    assert (failure_text(result), exit_code(result)) == (said, code)


def test_only_a_model_in_health_is_offered():
    assert endpoint_text(ENDPOINT).endswith(f"Ask it:\n{ENDPOINT['example']}")
    stopped = {**ENDPOINT, "health": "stopped", "reason": "stopped (since noon); `make ui` starts it again"}
    assert endpoint_text(stopped) == (
        "e2i-one/1 is stopped: stopped (since noon); `make ui` starts it again."
    )
    assert endpoint_text({**ENDPOINT, "health": "unhealthy"}) == "e2i-one/1 is unhealthy."
    assert "curl" not in endpoint_text({**ENDPOINT, "example": "", "reason": "its release is gone"})


@pytest.mark.parametrize("known", [True, False])
def test_a_blocking_check_is_told_as_a_refusal_with_what_it_knows(known):
    """A check that knows file, field and remedy of its refusal tells them; of another one it is said which it was."""
    spec = dg.AssetCheckSpec("nothing_missing", asset="table", blocking=True)
    error = VerdictError(
        "nothing is left.", file="rows", field="2024-01", remedy="Load it again."
    ).to_record()

    @dg.asset(check_specs=[spec])
    def table():
        yield dg.MaterializeResult()
        yield dg.AssetCheckResult(
            check_name="nothing_missing",
            passed=False,
            description="nothing is left.",
            metadata={"error": error} if known else {},
        )

    @dg.asset(deps=[table])
    def after():
        raise AssertionError("what is blocked is not read")

    result = dg.materialize([table, after], raise_on_error=False)
    record = failure_record(result)
    assert not result.success and exit_code(result) == 4
    assert record["message"] == "table nothing_missing: nothing is left."
    told = tuple(record[key] for key in ("code", "file", "field", "remedy"))
    assert told == (
        ("refused", "rows", "2024-01", "Load it again.")
        if known
        else ("refused", "table", "nothing_missing", None)
    )
