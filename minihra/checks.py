"""`minihra check`: every hand-written backward against central differences."""

import argparse
import sys

from minihra.cases import distance_to_kink
from minihra.gradcheck import H_STEP, TOLERANCE, gradient_check, table
from minihra.model_cases import all_cases

EXPLANATION = f"""
error         largest difference of the analytic and the numeric derivative along a direction (central differences)
of allowed    its share of what is allowed: {TOLERANCE:g} of the gradient's norm plus the round-off of the differences
nearest kink  smallest |a| that a trained relu was given; the differences step by {H_STEP:g}"""


def run_check(arguments: argparse.Namespace) -> int:
    """Check every case and print a table of errors."""
    failures = []
    print(f"{'pair':<54} {'error':>9} {'of allowed':>10} {'nearest kink':>13}")
    cases = all_cases()
    for case in cases:
        rows = gradient_check(
            case.pair.forward, case.pair.backward, case.arguments, constants=case.constants, outputs=case.outputs
        )
        *_, cache = case.pair.forward(**case.arguments, **case.constants)
        kink = distance_to_kink(cache)
        error = max(abs(row.analytic - row.numeric) for row in rows)
        ok = all(row.ok for row in rows)
        print(
            f"{case.name:<54} {error:>9.1e} {max(row.error for row in rows):>10.4f} "
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
