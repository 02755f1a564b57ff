"""Settings that --accept changed during a run: which, when, and their values before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# {"step": steps done before the change, "name": key of the fingerprint, "then": value before, "now": value after}
Change = dict[str, Any]
UNRECORDED = "not recorded"  # the value before, in checkpoints of versions that did not record it


def record_changes(step: int, differing: Mapping[str, tuple[Any, Any]]) -> list[Change]:
    """Return the changes of a run that resumes after `step` steps. differing: name → (then, now)."""
    return [{"step": step, "name": name, "then": then, "now": now} for name, (then, now) in differing.items()]


def accepted_changes(state: Mapping[str, Any]) -> list[Change]:
    """Return the changes that led to a checkpoint, in order. Raises what translate_load_errors translates."""
    if "accepted" in state:
        return parse_changes(state["accepted"])
    # A version that did not record changes: only the names of the last accepted ones are known.
    names = [name for name in state["config"].get("accept", "").split(",") if name]
    values = state.get("fingerprint", state["config"])
    return [{"step": state["step"], "name": name, "then": UNRECORDED, "now": values.get(name)} for name in names]


def parse_changes(content: Any) -> list[Change]:
    """Validate changes read from a file. Raises ValueError, TypeError or KeyError if they are malformed."""
    changes = [{name: change[name] for name in ("step", "name", "then", "now")} for change in content]
    for change in changes:
        if type(change["step"]) is not int or type(change["name"]) is not str:
            raise ValueError(f"accepted: {change}")
        if not all(isinstance(change[name], (str, int, float, type(None))) for name in ("then", "now")):
            raise ValueError(f"accepted: {change}")
    return changes


def format_changes(changes: Sequence[Change]) -> str:
    """Format changes as "lr 0.01 until step 30, then 0.0003; seed …"; "" if there are none."""
    return "; ".join(format_changes_by_setting(changes))


def format_changes_by_setting(changes: Sequence[Change]) -> list[str]:
    """Return one line for each changed setting: "lr 0.01 until step 30, then 0.0003"."""
    lines = []
    for name in dict.fromkeys(change["name"] for change in changes):
        own = [change for change in changes if change["name"] == name]
        values = "".join(f"{shorten(change['then'])} until step {change['step']}, " for change in own)
        lines.append(f"{name} {values}then {shorten(own[-1]['now'])}")
    return lines


def append_changes(recipe: str, changes: Sequence[Change]) -> str:
    """Append to a run's recipe, as text, what --accept changed during the run."""
    return f"{recipe}, changed by --accept: {format_changes(changes)}" if changes else recipe


def required_accepts(accept: Iterable[str], changes: Sequence[Change], saved: int) -> list[str]:
    """Return the names in `accept` that are needed to resume from a checkpoint after `saved` steps.

    A change before that checkpoint is part of it. Accepting its name again would let through another change.
    """
    return [name for name in accept if any(change["name"] == name and change["step"] >= saved for change in changes)]


def shorten(value: Any) -> str:
    """Return a value as text of at most 40 characters."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
