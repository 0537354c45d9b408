"""A stored version is used again when inputs, waivers, code and policy are those that made it."""

import shutil

import pytest

from e2i_dagster.config.policy import load_policy
from e2i_dagster.pipeline.reuse import find_reusable, fingerprint_of
from e2i_dagster.policy_files import observed
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.versions import ledger
from e2i_dagster.versions.ledger import READ, DataVersion

INPUTS = [("splits", "a", "1"), ("training_frame", "a", "2")]


def test_inputs_waivers_and_code_are_the_fingerprint():
    usual = fingerprint_of(INPUTS, ["w"], "code")
    assert fingerprint_of(INPUTS[::-1], ["w"], "code") == usual
    others = {
        fingerprint_of([("splits", "a", "1"), ("training_frame", "a", "3")], ["w"], "code"),
        fingerprint_of([("splits", "b", "1"), ("training_frame", "a", "2")], ["w"], "code"),
        fingerprint_of(INPUTS, [], "code"),
        fingerprint_of(INPUTS, ["w"], "other"),
    }
    assert len(others | {usual}) == 5


def whole(file):
    """No file is damaged."""
    return ""


def made(database, digest, fingerprint, code="c", **metadata):
    return ledger.record(
        database, DataVersion("made", "a", digest, 1, code, code, fingerprint, metadata=metadata)
    )


@pytest.mark.parametrize("any_version", [False, True])
def test_only_a_version_of_the_same_fingerprint_is_used_again(database, any_version):
    def found(fingerprint):
        return find_reusable(
            database, "made", ["a"], fingerprint, code="c", any_version=any_version, damage=whole
        )

    assert (found("f1").versions, found("f1").reason) == ({}, "")
    first = made(database, "1", "f1")
    assert found("f1").versions == {"a": first}
    assert (found("f2").versions, found("f2").reason) == ({}, "changed: its inputs")
    second = made(database, "2", "f2")
    assert found("f2").versions == {"a": second}
    # Back to the inputs of before: only what makes nothing but its value may take the older version.
    back = found("f1")
    assert back.versions == ({"a": first} if any_version else {})
    assert back.older is any_version


def test_a_version_stands_while_the_policy_that_it_read_stands(database, tmp_path, monkeypatch):
    folder = tmp_path / "config"
    shutil.copytree(CHECKOUT / "config", folder)
    monkeypatch.setenv("E2I_CONFIG", str(folder))
    with observed.recording() as readings:
        assert load_policy(folder).sources.months[0] == "2022-01"
    version = made(database, "1", "f1", **{READ: readings.to_record()})

    def found():
        return find_reusable(database, "made", ["a"], "f1", code="c", any_version=False, damage=whole)

    assert found().versions == {"a": version}
    sources = folder / "sources.yaml"
    text = sources.read_text(encoding="utf-8")
    sources.write_text(text.replace('first_month: "2022-01"', 'first_month: "2022-03"'), encoding="utf-8")
    assert sources.read_text(encoding="utf-8") != text
    assert (found().versions, found().reason) == ({}, "changed: sources.yaml: first_month")
