"""`animx doctor`: what is installed, what is missing, and the exact line that gets it."""

from __future__ import annotations

from dataclasses import asdict

from animx.cli import options as o
from animx.cli.output import Output
from animx.errors import UsageError

MARKS = {"ok": "ok", "missing": "--", "broken": "!!"}


@o.command("doctor", examples=("animx doctor", "animx doctor --json"))
def doctor(out: Output) -> None:
    """Say what is installed, which devices and encoders work, what is missing and the exact line that gets it.

    Exit 0 when the main job works here; what is optional may be missing.
    """
    from animx.doctor import examine, is_usable

    findings = examine()
    usable = is_usable(findings)
    lines: list[str] = []
    area = ""
    for one in findings:
        if one.area != area:
            area = one.area
            lines.append(f"{area}")
        lines.append(f"  {MARKS[one.state]} {one.name:<22} {one.detail}".rstrip())
        if one.mend:
            lines.append(
                f"     {'':<22} get it: {one.mend}" if one.state == "missing" else f"     {'':<22} mend: {one.mend}"
            )
    broken = [one for one in findings if one.state == "broken"]
    lines.append("")
    lines.append(
        "the main job (animx render) works here" if usable else "the main job (animx render) does not work here"
    )
    out.result({"usable": usable, "findings": [asdict(one) for one in findings]}, lines)
    if not usable:
        first = next(one for one in broken)
        raise UsageError(f"{first.name}: {first.detail}. Mend: {first.mend or 'see above'}")
