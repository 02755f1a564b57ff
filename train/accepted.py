"""What --accept let through: which settings of a run changed on its way, from what to what, and after which step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# {"step": steps done before it, "name": of what the fingerprint holds, "then": its value before, "now": after}
Change = dict[str, Any]
UNRECORDED = "not recorded"  # the value before, in checkpoints of versions that forgot it


def list_changes(step: int, differing: Mapping[str, tuple[Any, Any]]) -> list[Change]:
    """The changes with which a run goes on after `step` steps; differing: name → (then, now)."""
    return [{"step": step, "name": name, "then": then, "now": now} for name, (then, now) in differing.items()]


def changes_of(state: Mapping[str, Any]) -> list[Change]:
    """The changes on the way to a checkpoint, in order. See translate_load_errors for what it raises."""
    if "accepted" in state:
        return check_changes(state["accepted"])
    # A version that did not keep them: what was accepted last is known by name.
    names = [name for name in state["config"].get("accept", "").split(",") if name]
    values = state.get("fingerprint", state["config"])
    return [{"step": state["step"], "name": name, "then": UNRECORDED, "now": values.get(name)} for name in names]


def check_changes(content: Any) -> list[Change]:
    """Changes as they were read from a file. Raises ValueError, TypeError or KeyError where they are none."""
    changes = [{name: one[name] for name in ("step", "name", "then", "now")} for one in content]
    for one in changes:
        if type(one["step"]) is not int or type(one["name"]) is not str:
            raise ValueError(f"accepted: {one}")
        if not all(isinstance(one[name], (str, int, float, type(None))) for name in ("then", "now")):
            raise ValueError(f"accepted: {one}")
    return changes


def say_changes(changes: Sequence[Change]) -> str:
    """Changes in words, "lr 0.01 until step 30, then 0.0003; seed …", or "" where there are none."""
    return "; ".join(say_each(changes))


def say_each(changes: Sequence[Change]) -> list[str]:
    """What became of each setting that was changed, in words."""
    said = []
    for name in dict.fromkeys(one["name"] for one in changes):
        own = [one for one in changes if one["name"] == name]
        values = "".join(f"{short(one['then'])} until step {one['step']}, " for one in own)
        said.append(f"{name} {values}then {short(own[-1]['now'])}")
    return said


def with_changes(recipe: str, changes: Sequence[Change]) -> str:
    """A run's recipe in words, and what --accept changed of it on the way."""
    return f"{recipe}, changed on the way by --accept: {say_changes(changes)}" if changes else recipe


def still_to_accept(accept: Iterable[str], changes: Sequence[Change], saved: int) -> list[str]:
    """Of the names that --accept was given, those still needed to go on from a checkpoint after `saved` steps.

    A change that a later checkpoint was written under is part of that; any other would let through what nobody asked.
    """
    return [name for name in accept if any(one["name"] == name and one["step"] >= saved for one in changes)]


def short(value: Any) -> str:
    """A value in a line: a recipe's is long."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
