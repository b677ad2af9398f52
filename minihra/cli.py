"""The command `minihra`."""

import argparse
import sys
from collections.abc import Sequence

import minihra
from minihra.cases import distance_to_kink, layer_cases
from minihra.gradcheck import H_STEP, TOLERANCE, gradient_check, table
from minihra.model_cases import block_cases, model_cases

EXPLANATION = f"""
error         largest difference of the analytic and the numeric derivative along a direction (central differences)
of allowed    its share of what is allowed: {TOLERANCE:g} of the gradient's norm plus the round-off of the differences
nearest kink  smallest |a| that a trained relu was given; the differences step by {H_STEP:g}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0 = done, 1 = a check failed, 2 = a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="minihra",
        description="Hierarchical Recurrent Adapters for frozen Conformers, every backward pass written by hand.",
    )
    parser.add_argument("--version", action="version", version=f"minihra {minihra.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="check every hand-written backward against central differences",
        description="Check the backward of every layer, every block and the whole model against central differences in "
        "float64. Exit status 1 if one is wrong.",
    )
    check.set_defaults(run=run_check)
    return parser.parse_args(argv).run()


def run_check() -> int:
    """Check every case and print a table of errors."""
    failures = []
    print(f"{'pair':<34} {'error':>9} {'of allowed':>10} {'nearest kink':>13}")
    cases = [*layer_cases(), *block_cases(), *model_cases()]
    for case in cases:
        rows = gradient_check(
            case.pair.forward, case.pair.backward, case.arguments, constants=case.constants, outputs=case.outputs
        )
        *_, cache = case.pair.forward(**case.arguments, **case.constants)
        kink = distance_to_kink(cache)
        error = max(abs(row.analytic - row.numeric) for row in rows)
        ok = all(row.ok for row in rows)
        print(
            f"{case.name:<34} {error:>9.1e} {max(row.error for row in rows):>10.4f} "
            f"{'' if kink == float('inf') else format(kink, '13.1e')}{'' if ok else '  FAILS'}"
        )
        if not ok:
            failures.append(f"{case.name}\n{table(rows)}")
    print(EXPLANATION)
    if failures:
        print("\n" + "\n\n".join(failures), file=sys.stderr)
        print(f"\n{len(failures)} of {len(cases)} checks failed", file=sys.stderr)
        return 1
    print(f"\nall {len(cases)} checks passed")
    return 0
