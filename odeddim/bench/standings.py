"""The standings of the league: places by each error, where two errors disagree, and a short table to print."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from odeddim.bench.tables import Column, Table

RANKED = ("round_trip", "latent", "decoded")
PLACES = (
    Column("round_trip_place", "trip #", "the place by the round trip among the runs with as many evaluations"),
    Column("latent_place", "latent #", "the place by the error of the latent"),
    Column("decoded_place", "decoded #", "the place by the error of the decoded noise"),
)
_COLUMNS = (
    Column("budget", "evals", "the most evaluations of the network per image and direction"),
    Column(
        "by",
        "by",
        "round trip: rms over the pixels of an image in [-1, 1]; latent: rms distance of x_T, of unit variance, to the "
        "ODE's; decoded: of the image of a noise, in pixels; signs: the share of the values of x_T with the right sign",
        "s",
    ),
    Column("place", "place"),
    Column("run", "run", form="s"),
    Column("median", "median", "over the images", ".3g"),
    Column("median_10", "10 %", "the value that one image in ten does not exceed", ".2g"),
    Column("median_90", "90 %", "the value that nine images in ten do not exceed", ".2g"),
    *PLACES,
)


def give_places(rows: Sequence[dict[str, Any]]) -> None:
    """Give each run its place by each error among the runs of its budget: equal errors share a place."""
    for row, name in itertools.product(rows, RANKED):
        runs = _ranked(rows, row["budget"], name)
        takes_part = any(row is run for run in runs)
        row[f"{name}_place"] = 1 + sum(run[name] < row[name] for run in runs) if takes_part else None


def _ranked(rows: Sequence[Mapping[str, Any]], budget: int, *names: str) -> list[Mapping[str, Any]]:
    """The runs of a budget that are measured themselves and have these errors."""
    own = (row for row in rows if row["budget"] == budget and not row.get("same_as"))
    return [row for row in own if all(row[name] is not None for name in names)]


def reversals(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences, one for each number of evaluations, that say how far the round trip tells the error of the latent.

    Args:
        rows: The rows of the table, with their places.

    Returns:
        For each number of evaluations with two runs or more, the share of the pairs of runs that the two errors order
        differently (pairs with equal errors aside), of all runs and of those that do not come back exactly, and the two
        runs whose places differ most.
    """
    found = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        runs = _ranked(rows, budget, "round_trip", "latent")
        share = _reversed(runs)
        if share is None:
            continue
        others = _reversed([row for row in runs if row["round_trip"] > 0])
        among = "" if others is None else f" ({others:.0%} among those that do not come back exactly)"
        runs.sort(key=lambda row: row["round_trip_place"] - row["latent_place"])
        both = "; ".join(
            f"{row['solver']}@{row['grid']} has place {row['round_trip_place']} by the round trip "
            f"({row['round_trip']:.2g}) and place {row['latent_place']} by the latent ({row['latent']:.2g})"
            for row in (runs[0], runs[-1])
        )
        found.append(
            f"{budget} evaluations, {len(runs)} runs: the latent orders {share:.0%} of the pairs of runs otherwise "
            f"than the round trip does{among}; {both}"
        )
    return found


def _reversed(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the pairs of runs that the two errors order differently; None without a pair that both order."""
    pairs = itertools.combinations(runs, 2)
    signs = [(a["round_trip"] - b["round_trip"]) * (a["latent"] - b["latent"]) for a, b in pairs]
    told = [sign for sign in signs if sign != 0]
    return sum(sign < 0 for sign in told) / len(told) if told else None


def standings(table: Table, places: int) -> Table:
    """Return the best runs of each number of evaluations by each error and by the signs, as a table to print.

    Args:
        table: The table of the league.
        places: How many runs are listed by each. By the round trip, runs that come back exactly are counted in a note.

    Returns:
        The table, with the notes of the whole one but for the `reversals`.
    """
    rows: list[dict[str, Any]] = []
    exact: dict[int, int] = {}
    words = {name: name.replace("_", " ") for name in (*RANKED, "signs")}
    for budget in dict.fromkeys(row["budget"] for row in table.rows):
        for name, by in words.items():
            runs = _ranked(table.rows, budget, name)
            if name == "round_trip":
                exact[budget] = sum(row[name] == 0 for row in runs)
                runs = [row for row in runs if row[name] > 0]
            runs.sort(key=lambda row: -row[name] if name == "signs" else row[name])
            for place, row in enumerate(runs[:places], 1 + (exact[budget] if name == "round_trip" else 0)):
                own = {f"median{part}": row[f"{name}{part}"] for part in ("", "_10", "_90")}
                shown = {column.name: row.get(column.name) for column in _COLUMNS}
                label = f"{row['solver']}@{row['grid']}"
                rows.append({**shown, **own, "by": by, "place": place, "run": label})
    some = ", ".join(f"{count} of {budget}" for budget, count in exact.items() if count)
    notes = [f"with a round trip of exactly 0, not listed by it: {some} evaluations"] if some else []
    return Table(
        bench="standings",
        title=table.title,
        settings=table.settings,
        columns=_COLUMNS,
        rows=tuple(rows),
        notes=(*notes, *(note for note in table.notes if note not in reversals(table.rows))),
        group=("budget", "by"),
    )
