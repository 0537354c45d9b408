"""The examples of the page run, and importing the package is cheap."""

import re
import subprocess
import sys

from e2i_dagster import experiments
from e2i_dagster.policy_files.environment import CHECKOUT

PAGE = CHECKOUT / "docs/experiments_statistics.md"


def test_the_examples_of_the_page_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


def test_every_public_name_is_there():
    for name in experiments.__all__:
        assert getattr(experiments, name) is not None
    assert not hasattr(experiments, "no_such_name")


def test_importing_the_package_loads_nothing_heavy():
    script = "import sys, e2i_dagster.experiments; assert not {'scipy', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=CHECKOUT)
