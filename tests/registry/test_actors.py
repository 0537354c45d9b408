"""Who acts: the proxy's user, proven for one run, or a name that somebody gives themselves."""

import dagster as dg
import pytest

from e2i_dagster.errors import VerdictError
from e2i_dagster.policy_files.actors import (
    SIGNATURE_TAG,
    TOKEN_HEADER,
    USER_HEADER,
    USER_TAG,
    Actor,
    actor_of_run,
    require_authenticated,
    tags_of_user,
    user_of_request,
)

TOKEN = "a secret of the proxy"


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("E2I_PROXY_TOKEN", TOKEN)
    monkeypatch.setenv("E2I_ACTOR", "ann")


@pytest.mark.parametrize(
    ("headers", "user"),
    [
        ({USER_HEADER: "bob", TOKEN_HEADER: TOKEN}, "bob"),
        ({USER_HEADER: "bob"}, None),
        ({USER_HEADER: "bob", TOKEN_HEADER: "guessed"}, None),
        ({TOKEN_HEADER: TOKEN}, None),
        ({USER_HEADER: "  ", TOKEN_HEADER: TOKEN}, None),
    ],
)
def test_a_user_is_believed_when_the_proxy_says_so(headers, user):
    assert user_of_request(headers.get) == user


def test_without_a_secret_no_header_is_believed(monkeypatch):
    monkeypatch.delenv("E2I_PROXY_TOKEN")
    assert user_of_request({USER_HEADER: "bob", TOKEN_HEADER: ""}.get) is None
    with pytest.raises(VerdictError, match="not signed for this run"):
        actor_of_run("run", {USER_TAG: "bob", SIGNATURE_TAG: ""})


def test_a_signed_run_is_authenticated_and_a_copied_or_typed_tag_is_refused():
    tags = tags_of_user("run 1", "bob")
    assert actor_of_run("run 1", tags) == Actor("bob", "authenticated")
    assert actor_of_run("run 1", {}) == Actor("ann", "self-declared")
    for run, shown in (("run 2", tags), ("run 1", {USER_TAG: "bob"}), ("run 1", tags | {USER_TAG: "eve"})):
        with pytest.raises(VerdictError, match="not signed for this run"):
            actor_of_run(run, shown)


def test_production_asks_for_an_authenticated_person(monkeypatch):
    require_authenticated(Actor("ann", "self-declared"), "This")
    monkeypatch.setenv("E2I_ENVIRONMENT", "production")
    require_authenticated(Actor("ann", "authenticated"), "This")
    with pytest.raises(
        VerdictError, match=r"This needs an authenticated person .*'ann' is self-declared"
    ) as error:
        require_authenticated(Actor("ann", "self-declared"), "This")
    assert (error.value.field, error.value.value) == ("actor", "ann")


class Submitted:
    """What Dagster's web server hands to the queue: the run, and the headers of the request."""

    def __init__(self, run, headers):
        self.dagster_run = run
        self.get_request_header = headers.get


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({USER_HEADER: "bob", TOKEN_HEADER: TOKEN}, Actor("bob", "authenticated")),
        ({USER_HEADER: "bob"}, Actor("ann", "self-declared")),
    ],
)
def test_the_queue_tags_a_run_with_the_user_of_its_request(tmp_path, headers, expected):
    from dagster._check import CheckError
    from dagster._core.test_utils import create_run_for_test

    overrides = {
        "run_coordinator": {"module": "resources.run_coordinator", "class": "AuthenticatedRunCoordinator"}
    }
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance:
        run = create_run_for_test(instance, job_name="promote_model", status=dg.DagsterRunStatus.NOT_STARTED)
        with pytest.raises(CheckError, match="required for queued runs"):
            # Without a remote code location Dagster's queue stops after our part.
            instance.run_coordinator.submit_run(Submitted(run, headers))
        found = instance.get_run_by_id(run.run_id)
        assert actor_of_run(run.run_id, found.tags) == expected
