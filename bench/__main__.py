"""The command line: ``python -m bench [NAME...] [--runs N] [--quick]``."""

from __future__ import annotations

import argparse
import sys

from bench.figures import FIGURES
from bench.harness import Plan, heading, table


def main() -> None:
    """Measure the chosen figures and print them as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure trio-sp side by side with its peers.")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"figures to measure, of {', '.join(FIGURES)}; none: all")
    parser.add_argument("--runs", type=int, help="runs of each side, in turn (default: 7)")
    parser.add_argument("--quick", action="store_true", help="short runs, and 3 of them: to see that all works, not how fast")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in FIGURES]
    if unknown:
        parser.error(f"no figure is called {', '.join(unknown)}: there are {', '.join(FIGURES)}")
    plan = Plan(runs=arguments.runs or (3 if arguments.quick else 7), seconds=0.25 if arguments.quick else 0.7, quick=arguments.quick)
    rows = []
    for name in arguments.names or FIGURES:
        print(f"measuring {name} ...", file=sys.stderr)
        rows += [(name, row) for row in FIGURES[name](plan)]
    print(heading(plan))
    print(table(rows))


if __name__ == "__main__":
    main()
