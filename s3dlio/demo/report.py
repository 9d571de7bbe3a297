"""The numbers of a demo run, and how they look.

Owns the record, its verdict, and its text and JSON forms; pure. ``story`` fills it, the command line prints it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

from s3dlio.cli.terminal import Style, seconds, size, table


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What happened. Sizes in bytes, times in seconds; ``reference`` and ``resumed``: SHA-256 by part of the state."""

    store: str
    steps: int
    save_every: int
    parameters: int
    state_bytes: int
    first_loss: float
    last_loss: float
    held_out_loss: float
    died_at: int
    died_stored: int
    died_total: int
    workers: int
    workers_left: int
    committed_after_death: tuple[int, ...]
    resumed_from: int | None
    load_seconds: float | None
    reference: dict[str, str]
    resumed: dict[str, str]
    stalls: tuple[float, ...]
    blocking: tuple[float, ...]
    commits: tuple[float, ...]
    step_alone: tuple[float, ...]
    step_saving: tuple[float, ...]
    blocking_elsewhere: bool
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether the resumed run ended with the same bits as the uninterrupted one."""
        return bool(self.reference) and self.reference == self.resumed

    @property
    def torn_hidden(self) -> bool:
        """Whether the save the trainer died in stayed invisible."""
        return self.died_at not in self.committed_after_death

    @property
    def well(self) -> bool:
        """The same bits, really resumed from a checkpoint, and no process left."""
        return self.equal and self.resumed_from is not None and self.workers_left == 0


def as_json(report: DemoReport) -> dict[str, Any]:
    """The report as plain values, with the verdicts and medians."""
    values = {field.name: getattr(report, field.name) for field in fields(report)}
    values["equal"] = report.equal
    values["well"] = report.well
    values["torn_hidden"] = report.torn_hidden
    for name in ("stalls", "blocking", "commits", "step_alone", "step_saving"):
        values[f"{name}_median"] = _median(values[name])
    return values


def as_text(report: DemoReport, style: Style) -> str:
    """The report for people, several lines."""
    return "\n".join(
        [
            "",
            *_what_happened(report, style),
            "",
            *_comparison(report, style),
            "",
            *_measured(report, style),
            "",
            _verdict(report, style),
            "",
            f"  files    {report.store}",
            f"  look     s3dlio ls {report.store}",
            f"           s3dlio verify {report.store}",
        ]
    )


def _what_happened(report: DemoReport, style: Style) -> list[str]:
    hidden = "is not listed" if report.torn_hidden else "was committed in the instant of the kill"
    ended = f"; its worker processes ({report.workers}) ended by themselves" if report.workers else ""
    if report.workers_left:
        ended = f"; {style.bad(f'{report.workers_left} of its worker processes are left')}"
    resumed = "from the start" if report.resumed_from is None else f"from step {report.resumed_from}"
    loaded = "" if report.load_seconds is None else f", loaded in {seconds(report.load_seconds)}"
    rows = [
        (
            "model",
            f"byte-level transformer, {report.parameters / 1e6:.1f} million parameters, AdamW; "
            f"state of {size(report.state_bytes)}",
        ),
        (
            "trained",
            f"{report.steps} steps on the standard library's sources: loss {report.first_loss:.2f} to "
            f"{report.last_loss:.2f} (held out {report.held_out_loss:.2f})",
        ),
        (
            "killed",
            f"SIGKILL in the save of step {report.died_at}, "
            f"{size(report.died_stored)} of {size(report.died_total)} stored",
        ),
        ("", f"that save {hidden}{ended}"),
        ("resumed", f"{resumed}{loaded}, in a new process, to step {report.steps}"),
    ]
    return [f"  {style.strong(name):<{8 + style.hidden(name)}} {text}" for name, text in rows]


def _comparison(report: DemoReport, style: Style) -> list[str]:
    rows: list[Sequence[str]] = []
    for part in sorted(report.reference.keys() | report.resumed.keys()):
        ours, theirs = report.reference.get(part, "-"), report.resumed.get(part, "-")
        rows.append((part, ours[:16], theirs[:16], style.good("equal") if ours == theirs else style.bad("DIFFERS")))
    return table(("state at the last step", "uninterrupted", "killed and resumed", ""), rows, style)


def _measured(report: DemoReport, style: Style) -> list[str]:
    ours, theirs, commit = _median(report.stalls), _median(report.blocking), _median(report.commits)
    elsewhere = " (local disk)" if report.blocking_elsewhere else ""
    rows: list[Sequence[str]] = []
    if ours is not None:
        rows.append(("stall, save_async", seconds(ours), f"median of {len(report.stalls)}"))
    if theirs is not None and ours:
        rows.append(
            (
                f"stall, torch.save + fsync{elsewhere}",
                seconds(theirs),
                f"median of {len(report.blocking)}, {theirs / ours:.1f} times as long",
            )
        )
    if commit:
        rows.append(("save to committed, in the background", seconds(commit), f"{size(report.state_bytes / commit)}/s"))
    alone, saving = _median(report.step_alone), _median(report.step_saving)
    if alone and saving:
        rows.append(("training step, no saves / with saves", f"{seconds(alone)} / {seconds(saving)}", "medians"))
    return table((f"measured, a save every {report.save_every} steps", "", ""), rows, style, right=(1,))


def _verdict(report: DemoReport, style: Style) -> str:
    took = f"({report.seconds:.0f} s)"
    if not report.equal:
        return style.bad(f"  The resumed run differs from the uninterrupted one. {took}")
    if report.resumed_from is None:
        return style.bad(f"  Nothing was resumed: no checkpoint was committed before the kill. {took}")
    if report.workers_left:
        return style.bad(f"  Equal bit for bit, but {report.workers_left} worker processes outlived the kill. {took}")
    return style.good(f"  The resumed run equals the uninterrupted one, bit for bit. {took}")


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
