"""What the pages say is there: links, commands, sensors, variables. And nothing of a workplace is in the files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from e2i_dagster.policy_files.environment import CHECKOUT

README = CHECKOUT / "README.md"
PAGES = [README, CHECKOUT / "deploy/README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
CODE = (
    "e2i_dagster",
    "assets",
    "commands",
    "resources",
    "jobs",
    "sensors",
    "feature_repo",
    "deploy",
    "benchmarks",
)
#: Paths and hosts of one machine. Addresses in files are of the loopback interface or examples of a test.
FORBIDDEN = re.compile(r"(?<![\w.])/(?:work|root|home)(?:/|\b)|/tmp/\w", re.IGNORECASE)
ADDRESS = re.compile(r"https?://([^/\"'\s`)\]>:;{]+)")
#: Names of code systems and profiles, which nobody asks.
NAMES = {"hl7.org", "loinc.org", "snomed.info", "www.nlm.nih.gov"}
ALLOWED_HOSTS = {"127.0.0.1", "localhost", "www.w3.org", "test", *NAMES}


def tracked_texts() -> list[Path]:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed, so which files are tracked is not known")
    done = subprocess.run([git, "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout, so which files are tracked is not known")
    found = []
    for name in filter(None, done.stdout.split("\0")):
        path = CHECKOUT / name
        if path.is_file() and path != Path(__file__) and b"\0" not in path.read_bytes()[:4096]:
            found.append(path)
    return found


def table_after(heading: str) -> list[list[str]]:
    """Rows of the first table below a heading of the README, without its head."""
    text = README.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    lines = [line for line in text.split("\n## ", 1)[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page.name}: {target} is not there"
            if anchor and linked.suffix == ".md":
                assert anchor in anchors(linked), f"{page.name}: {target}: no heading of this name"


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by: lower case, without punctuation, with hyphens for blanks."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 1
        while slug in found:
            slug, number = f"{slug.removesuffix(f'-{number - 1}')}-{number}", number + 1
        found.add(slug)
    return found


def test_a_link_to_no_heading_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n\n## Again\n\n## Again\n\n```\n# none\n```\n", encoding="utf-8")
    assert anchors(page) == {"one-two-three", "again", "again-1"}


def test_the_index_has_every_page():
    index = (CHECKOUT / "docs/index.md").read_text(encoding="utf-8")
    for page in sorted((CHECKOUT / "docs").glob("*.md")):
        assert page.name == "index.md" or f"({page.name})" in index, (
            f"docs/index.md does not name {page.name}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_commands_on_pages_exist(page):
    """Each ``e2i`` command is one of the command line, with options that it has."""
    from commands.cli import main

    for line in re.findall(r"(?:`|\$ )e2i ([^`\n#]+)", page.read_text(encoding="utf-8")):
        words = line.replace("\\|", " ").split()
        command: click.Command = main
        while isinstance(command, click.Group) and words:
            word = words.pop(0)
            assert word in command.commands, f"{page.name}: e2i {line.strip()}: there is no command {word}"
            command = command.commands[word]
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)\[?(--[a-z-]+)", " ".join(words)):
            assert option in known | {"--help"}, f"{page.name}: e2i {line.strip()}: no option {option}"


def test_the_readme_has_every_command():
    from commands.cli import main

    named = README.read_text(encoding="utf-8")
    for name, command in main.commands.items():
        if command.hidden:
            continue
        for inner in command.commands if isinstance(command, click.Group) else [""]:
            assert f"`e2i {name} {inner}".rstrip() in named, f"the README does not name e2i {name} {inner}"


def test_the_readme_says_which_commands_have_json():
    from commands.cli import main

    for cells in table_after("Commands")[:11]:
        words = re.sub(r"[`\[].*", "", cells[0].strip("`")).split()[1:]
        command: click.Command = main
        for word in words:
            if isinstance(command, click.Group) and word in command.commands:
                command = command.commands[word]
        has = any("--json" in parameter.opts for parameter in command.params)
        assert cells[2] == ("yes" if has else "no"), cells[0]


def test_make_targets_on_pages_exist():
    targets = set(
        re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for page in PAGES:
        for name in re.findall(r"`(?:SCOPE=\S+ )?make ([a-z]+)`", page.read_text(encoding="utf-8")):
            assert name in targets, f"{page.name}: make {name}"


def test_schedules_and_sensors_are_as_the_readme_says():
    import dagster as dg

    from e2i_dagster.definitions import defs

    repository = defs.get_repository_def()
    real = {
        **{
            one.name: ("schedule", one.default_status == dg.DefaultScheduleStatus.RUNNING)
            for one in repository.schedule_defs
        },
        **{
            one.name: ("sensor", one.default_status == dg.DefaultSensorStatus.RUNNING)
            for one in repository.sensor_defs
        },
    }
    said = {
        cells[0].strip("`"): (cells[1], cells[2] == "on") for cells in table_after("Schedules and sensors")
    }
    assert said == real


def test_the_readme_has_exactly_the_variables_of_the_code():
    used: set[str] = set()
    for folder in CODE:
        for path in (CHECKOUT / folder).rglob("*"):
            if (path.is_file() and path.suffix in (".py", ".yaml", ".sh")) or path.name in (
                "Dockerfile",
                "Makefile",
            ):
                used |= set(re.findall(r"\bE2I_[A-Z_]+\b", path.read_text(encoding="utf-8")))
    text = README.read_text(encoding="utf-8")
    assert set(re.findall(r"\bE2I_[A-Z_]+\b", text)) == used
    in_table = {cells[0].strip("`") for cells in table_after("Environment variables")}
    assert in_table >= {"E2I_HOME", "E2I_DATABASE_URL", "MLFLOW_TRACKING_URI", "DAGSTER_HOME"}


def test_exit_codes_are_as_the_readme_says():
    from e2i_dagster import errors

    codes = {
        one.exit_code
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.E2IError)
    }
    said = {
        int(code) for code in re.findall(r"^\| (\d) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert said == codes | {0}


def test_no_file_names_a_place_of_one_machine():
    wrong = []
    for path in tracked_texts():
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            hosts = {host for host in ADDRESS.findall(line)} - ALLOWED_HOSTS
            if FORBIDDEN.search(line) or hosts:
                wrong.append(f"{path.relative_to(CHECKOUT)}:{number}: {line.strip()[:90]}")
    assert not wrong, "paths or hosts of one machine belong into the environment:\n" + "\n".join(wrong)


def test_pages_speak_of_the_product_alone():
    for page in [*PAGES, CHECKOUT / "Makefile", *(CHECKOUT / "config").rglob("*.yaml")]:
        found = re.findall(
            r"(?i)\b(?:sessions?|to-?do|fixme|placeholder)\b", page.read_text(encoding="utf-8")
        )
        assert not found, f"{page.relative_to(CHECKOUT)}: {found}"


def test_the_locks_name_no_index():
    for path in CHECKOUT.glob("*.lock"):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, f"{path.name}: which index is used is a matter of the machine"
        assert "--" not in text, f"{path.name}: options of the installer belong to the machine"
