"""Joins the tables of the league of both built-in models: league.csv, beside this file.

    odeddim bench league -n 64 --compile -o league
    odeddim bench league -n 64 --compile --model fashion-mnist-flow --evaluations 5,8,10,20 -o league-flow
    python benchmarks/league.py league league-flow

It keeps the errors, the figures of whiteness in the median, and the places, to six digits. Seconds are left out: they
are those of one machine.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

KEPT = Path(__file__).resolve().parent / "league.csv"
COLUMNS = (
    "model", "budget", "solver", "grid", "steps", "encode_evaluations", "decode_evaluations",
    *(f"{error}{part}" for error in ("round_trip", "latent", "decoded", "signs") for part in ("", "_10", "_90")),
    "norm", "autocorrelation", "normality", "round_trip_place", "latent_place", "decoded_place", "same_as", "remark",
)  # fmt: skip


def rounded(cell: str) -> str:
    """A number to six digits; any other text as it is."""
    try:
        return f"{float(cell):.6g}"
    except ValueError:
        return cell


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a folder of odeddim bench league")
    with open(KEPT, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for folder in parser.parse_args().folders:
            model = json.loads((folder / "league.json").read_text(encoding="utf-8"))["settings"]["model"]
            with open(folder / "league.csv", newline="", encoding="utf-8") as rows:
                for row in csv.DictReader(rows):
                    table.writerow({"model": model, **{name: rounded(cell) for name, cell in row.items()}})


if __name__ == "__main__":
    main()
