"""Report on each case of a long run: small reports, their summary, their file, and the exit code."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nnunetv2_freetumor.files.cases import write_json
from nnunetv2_freetumor.files.synthetic_names import source_of

EARLIER = "by an earlier run"
PEAK = "peak_"  # counts whose largest value matters, not their sum
SHOWN_CASES = 3  # of each reason
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


class CaseReport(NamedTuple):
    """The result of one case.

    done: its files are complete. skipped: nothing was written, because the input cannot be used. failed: nothing was
    written, because something went wrong.

    Field names are a file format: report.json.
    """

    case: str
    state: Literal["done", "skipped", "failed"]
    reason: str = ""
    counts: dict[str, float] = {}  # whatever is worth adding up over cases; never changed in place


def exit_code(reports: Sequence[CaseReport]) -> int:
    """Return 0 if every case is done, otherwise 1."""
    return 0 if all(report.state == "done" for report in reports) else 1


def summary_lines(reports: Sequence[CaseReport]) -> list[str]:
    """Summarize in text lines: cases of each state, what was counted, and the cases of each reason."""
    states = Counter(report.state for report in reports)
    earlier = sum(report.reason == EARLIER for report in reports)
    done = f"{states['done']} done" + (f" ({earlier} {EARLIER})" if earlier else "")
    lines = [f"{len(reports)} case(s): {done}, {states['skipped']} skipped, {states['failed']} failed."]
    lines += [f"  {name}: {value:.10g}" for name, value in _sums(reports).items()]
    for state in ("skipped", "failed"):
        for reason, cases in _by_reason(reports, state).items():
            named = ", ".join(cases[:SHOWN_CASES]) + (" ..." if len(cases) > SHOWN_CASES else "")
            lines.append(f"  {state}: {len(cases)} x {reason} ({named})")
    return lines


def write_reports(reports: Sequence[CaseReport], path: str | Path) -> None:
    """Write the summary and every report as JSON."""
    write_json({"summary": summary_lines(reports), "cases": [_as_json(report) for report in reports]}, path)


def _sums(reports: Sequence[CaseReport]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for report in reports:
        for name, value in report.counts.items():
            sums[name] = max(sums.get(name, 0), value) if name.startswith(PEAK) else sums.get(name, 0) + value
    return sums


def _by_reason(reports: Sequence[CaseReport], state: str) -> dict[str, list[str]]:
    """Group cases by reason, in the words of the first one; reasons that differ only in names and numbers are alike."""
    cases: dict[str, list[str]] = {}
    words: dict[str, str] = {}
    for report in reports:
        if report.state == state:
            names = "|".join(re.escape(name) for name in (report.case, source_of(report.case)))
            reason = re.sub(
                rf"(?<![A-Za-z0-9])({names})(?=_\d{{4}}\.|\.\w|/)|(?<=/)({names})(?=[\s:,;]|$)", "CASE", report.reason
            )
            reason = words.setdefault(_NUMBER.sub("#", reason), reason)
            cases.setdefault(reason, []).append(report.case)
    return cases


def _as_json(report: CaseReport) -> dict[str, Any]:
    return {name: value for name, value in report._asdict().items() if value}
