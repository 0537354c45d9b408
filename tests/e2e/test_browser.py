"""The Dagster UI as a person uses it: asset graph, launch of a job, run, check, figure.

With E2I_SAVE_SCREENSHOTS=1 the pictures of the README are taken again, too.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    (path for path in ("/usr/bin/chromium", shutil.which("chromium")) if path and Path(path).exists()), None
)
SWITCHES = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SCOPE = "remibrutinib_csu_initiation"
GROUPS = [
    "raw",
    "quality",
    "cohorts",
    "features",
    "splits",
    "models",
    "explain",
    "registry",
    "serving",
    "monitoring",
    "causal",
    "digital_twin",
    "experiments",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium (as .ci/run does)"),
]


@pytest.fixture(scope="module")
def address(deployed):
    """Address of the Dagster UI that ``e2i ui`` opened on the deployment; Ctrl-C ends it and all it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "commands.cli", "ui"],
        env=dict(deployed.environment),
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = []
    assert process.stdout is not None
    for line in process.stdout:
        printed.append(line)
        if "Ctrl-C" in line:
            break
    text = "".join(printed)
    found = re.search(r"Dagster UI\s+(\S+)", text)
    assert found, text
    assert re.search(r"classification\s+\S+\s+healthy", text), "the deployed service is named"
    yield found.group(1)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=150)
    assert not listening(found.group(1)), "the UI goes on after Ctrl-C"


def listening(url: str, patience: float = 10) -> bool:
    import socket

    number = int(url.rsplit(":", 1)[1])
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", number)) != 0:
                return False
        time.sleep(0.5)
    return True


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    """A page of 1280 x 800 points, drawn as 1600 x 1000 pixels."""
    opened = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.25)
    opened.set_default_timeout(30_000)
    yield opened
    opened.close()


def picture(page, folder: Path, name: str, *, settled: int | None = None) -> None:
    """A screenshot into ``folder``.

    For the README as well when it is to be taken again, ``settled`` milliseconds later: all is drawn by then.
    """
    target = folder / f"{name}.png"
    readme = settled is not None and os.environ.get("E2I_SAVE_SCREENSHOTS") == "1"
    if readme:
        page.wait_for_timeout(settled)
    page.screenshot(path=target)
    if readme:
        images = CHECKOUT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, images / f"{name}.png")


def test_asset_graph_by_group(browser, address, tmp_path):
    # The graph is drawn from top to bottom at full size: more points than pixels show all of it.
    page = browser.new_page(viewport={"width": 2400, "height": 1500}, device_scale_factor=2 / 3)
    page.set_default_timeout(30_000)
    page.goto(f"{address}/asset-groups")
    for group in GROUPS:
        page.get_by_text(group, exact=True).first.wait_for()
    page.locator("[aria-label=settings]").last.click()
    page.get_by_role("menuitem").filter(has_text="vertical orientation").click()
    page.get_by_text("Hide navigation").click()
    page.reload()
    page.get_by_text("monitoring", exact=True).last.wait_for()
    picture(page, tmp_path, "asset_graph", settled=6_000)
    # A group opens into its assets; the list beside the graph is sorted by name.
    position = sorted([*GROUPS, "configuration"]).index("models")
    page.locator("[aria-label=arrow_drop_down]").nth(position).click()
    for asset in ("algorithm", "hyperparameters", "trained_model", "evaluation"):
        page.get_by_text(asset, exact=True).first.wait_for()
    picture(page, tmp_path, "models")
    page.close()


def test_scope_pipeline_is_launched_and_succeeds(browser, page, address, deployed, tmp_path):
    page.goto(f"{address}/locations/e2i/jobs/scope_pipeline")
    page.get_by_text("Materialize all").click()
    page.get_by_text("Select a partition or create one").click()
    page.locator("[role=menuitem]").filter(has_text=SCOPE).first.click()
    page.get_by_text("Partition selection").click()
    page.get_by_role("button", name=re.compile("^Launch 1 run")).click()
    page.get_by_text(re.compile("Launched run")).wait_for()
    picture(page, tmp_path, "launched")
    page.get_by_text("View", exact=True).last.click()
    page.wait_for_url(re.compile("/runs/"))
    page.get_by_text("Success", exact=True).first.wait_for(timeout=120_000)
    # Once more with room for all steps, of which the page draws those in sight, and without the notice of the launch.
    wide = browser.new_page(viewport={"width": 2000, "height": 1500}, device_scale_factor=0.8)
    wide.goto(page.url)
    wide.get_by_text("deployment", exact=True).first.wait_for()
    wide.get_by_text("Hide navigation").click()
    picture(wide, tmp_path, "run", settled=2_500)
    wide.close()
    run_id = re.search(r"/runs/([0-9a-f-]{36})", page.url).group(1)
    states = deployed.rows(f"SELECT stage, state FROM ml_stage_states WHERE run_id = '{run_id}'")
    assert states and {row["state"] for row in states} == {"reused"}, "nothing had changed"


def test_asset_page_shows_a_check_and_a_figure(page, address, tmp_path):
    page.goto(f"{address}/assets/cohort")
    page.get_by_text("Eligible patients with index date").first.wait_for()
    row = page.locator("tr").filter(has_text=re.compile("^consort"))
    row.get_by_text("[Show Markdown]").click()
    figure = page.locator("img[src^='data:image']").first
    figure.wait_for()
    assert figure.evaluate("image => image.complete && image.naturalWidth") > 300, "the figure is drawn"
    picture(page, tmp_path, "figure")
    page.goto(f"{address}/assets/cohort?view=checks")
    page.get_by_text("cohort_not_empty").first.wait_for()
    page.get_by_text(re.compile("eligible patients")).first.wait_for()
    picture(page, tmp_path, "check")
