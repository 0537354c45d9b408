"""Run every benchmark beside this file, one after the other, and write benchmarks/RESULTS.md.

Each script prints progress and, as its last line, one JSON object with its figures. A script that
fails is listed as failed and the others still run. The exit code is 1 when one failed or a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"


def scripts(names: list[str]) -> list[Path]:
    """The benchmarks called ``names``, or all of them.

    Raises:
        SystemExit: there is no benchmark of that name.
    """
    found = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem != "run"}
    unknown = sorted(set(names) - set(found))
    if unknown:
        raise SystemExit(f"No benchmark is called {', '.join(unknown)}. There are: {', '.join(found)}.")
    return [found[name] for name in names] if names else list(found.values())


def ends(goal: Any) -> list[Any]:
    """The limit, or both ends of a range; nothing without a goal."""
    return [] if goal is None else goal if isinstance(goal, list) else [goal]


def has_figures(result: Any) -> bool:
    """Whether ``result`` is what a benchmark prints last: figures with limits or ranges as goals, and the machine."""
    return (
        isinstance(result, dict)
        and bool(result.get("figures"))
        and {"cpus", "platform", "python"} <= set(result.get("machine", ()))
        and all(
            {"value", "unit", "goal", "peer", "holds"} <= set(figure)
            and len(ends(figure["goal"])) <= 2
            and all(isinstance(end, (int, float)) for end in ends(figure["goal"]))
            for figure in result["figures"].values()
        )
    )


def result_of(script: Path) -> dict[str, Any]:
    """Run ``script``, pass its progress on, and return its last line's object, or why there is none."""
    print(f"\n{script.stem}", flush=True)
    began, lines = time.perf_counter(), []
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            lines.append(line)
    seconds = time.perf_counter() - began
    try:
        result: Any = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        result = None
    if not has_figures(result):
        why = f"ended with {process.returncode} and without figures"
        return {"benchmark": script.stem, "failed": why, "seconds": seconds}
    return {**result, "seconds": seconds}


def render(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown page."""
    lines = [
        "# Benchmark results",
        "",
        "Written by `make bench`; each figure is printed by the script of its name in this folder.",
        "",
        "| benchmark | figure | value | goal | against | holds |",
        "|---|---|---:|---:|---|---|",
    ]
    for result in results:
        if "failed" in result:
            lines.append(f"| {result['benchmark']} | failed | | | {result['failed']} | no |")
            continue
        for name, figure in result["figures"].items():
            unit = figure["unit"]
            goal = " to ".join(f"{end:,}" for end in ends(figure["goal"]))
            holds = "" if not goal else "yes" if figure["holds"] else "no"
            goal = f"{goal} {unit}" if goal else ""
            lines.append(
                f"| {result['benchmark']} | {name} | {figure['value']:,} {unit} | {goal} "
                f"| {figure['peer'] or ''} | {holds} |"
            )
    machines = sorted(
        {
            f"{result['machine']['cpus']} CPUs, {result['machine']['platform'].split('-')[0]}, "
            f"Python {result['machine']['python']}"
            for result in results
            if "failed" not in result
        }
    )
    return "\n".join([*lines, "", *(f"Machine: {machine}." for machine in machines), ""])


def succeeded(results: list[dict[str, Any]]) -> bool:
    """Whether every benchmark ran and every goal was reached."""
    return all(
        "failed" not in result and all(figure["holds"] for figure in result["figures"].values())
        for result in results
    )


def main() -> None:
    """Run the named benchmarks (default: all) and write the page when all were run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="benchmarks to run; without names all, and the page is written"
    )
    options = parser.parse_args()
    results = [result_of(script) for script in scripts(options.names)]
    page = render(results)
    print(f"\n{page}", flush=True)
    if not options.names:
        RESULTS.write_text(page, encoding="utf-8")
    sys.exit(0 if succeeded(results) else 1)


if __name__ == "__main__":
    main()
