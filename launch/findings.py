"""What the doctor found, a line each."""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

WHAT, FIGURE = 18, 76  # columns; the status follows


class Finding(NamedTuple):
    what: str
    figure: str
    status: Literal["ok", "warning", "error"] = "ok"
    remedy: str = ""  # names file and key


def refused(what: str, error: ValueError) -> Finding:
    """The finding of a refusal, whose message is "problem; remedy"."""
    problem, _, remedy = str(error).partition("; ")
    return Finding(what, problem, "error", remedy)


def shown(finding: Finding) -> str:
    """what, figure and status in columns; a remedy stands below."""
    indent = " " * WHAT
    first, *rest = _wrapped(finding.figure)
    status = finding.status if finding.status == "ok" else finding.status.upper()
    lines = [f"{finding.what:{WHAT}}{first:{FIGURE}}  {status}", *(indent + line for line in rest)]
    if finding.remedy:
        head, *tail = _wrapped(f"-> {finding.remedy}")
        lines += [indent + head, *(f"{indent}   {line}" for line in tail)]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    """Lines of at most FIGURE letters; a path is never cut."""
    lines = (textwrap.wrap(line, FIGURE, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
    return [line for wrapped in lines for line in wrapped] or [""]


def verdict(findings: Iterable[Finding]) -> str:
    """The last line of the report: how many errors and warnings."""
    statuses = [finding.status for finding in findings]
    counts = [(statuses.count(status), status) for status in ("error", "warning")]
    told = " and ".join(f"{num} {status}{'s' * (num > 1)}" for num, status in counts if num)
    return told or "nothing speaks against this run"


def write_json(findings: Iterable[Finding], path: Path) -> None:
    """The lines as a list of objects.  Raises ValueError when the file cannot be written."""
    text = json.dumps([finding._asdict() for finding in findings], indent=1) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--json {path}: cannot be written ({error})") from error
