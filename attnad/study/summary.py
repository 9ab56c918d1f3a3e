"""Tables for people: the paper's figures beside ours, for a terminal, as Markdown and as HTML."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from attnad.study.results import read_results
from attnad.study.tables import CLASSES, PAPER_METRICS, TABLES

NOT_RUN = "not yet run"


@dataclass(frozen=True)
class Summary:
    """A table of figures, the paper's and ours; notes say what is missing. Jupyter shows it as HTML."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """The table for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in self._all()]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *self.notes])

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self._all()]
        return "\n".join([lines[0], "|" + " --- |" * len(self.header), *lines[1:], "", *(f"{n}  " for n in self.notes)])

    def select(self, *columns: str, where: Callable[[dict[str, str]], bool] = lambda line: True) -> Summary:
        """Take some columns, in the order given, of the lines that `where` says yes to: it is given {column: cell}.

        Raises ValueError on a column that is not there.
        """
        if missing := set(columns) - set(self.header):
            raise ValueError(f"there is no column {min(missing)!r}; choose among {', '.join(self.header)}")
        lines = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        chosen = tuple(tuple(line[name] for name in columns) for line in lines if where(line))
        return Summary(columns, chosen, self.notes)

    def metric(self, name: str) -> Summary:
        """Take the lines of one metric, those not yet run among them, without the column that names it."""
        columns = [column for column in self.header if column != "metric"]
        return self.select(*columns, where=lambda line: line["metric"] in (name, ""))

    def pivot(self, column: str) -> Summary:
        """Set the metrics side by side: one line for each method and run, with the cells of one column of the table.

        Raises ValueError on a column that is not there.
        """
        lines = self.select("method", "run", "seeds", "metric", column).rows
        metrics = list(dict.fromkeys(metric for *_, metric, _ in lines if metric))
        cells: dict[tuple[str, ...], dict[str, str]] = {}
        for *line, metric, cell in lines:
            cells.setdefault(tuple(line), {})[metric] = cell
        table = tuple((*line, *(values.get(metric, "-") for metric in metrics)) for line, values in cells.items())
        return Summary(("method", "run", "seeds", *metrics), table, self.notes)

    def transpose(self, where: Callable[[dict[str, str]], bool] = lambda line: True) -> Summary:
        """Turn the lines of one metric that `where` says yes to into columns: each class, and their mean, is a line."""
        lines = self.select(*self.header, where=where).rows
        first = self.header.index("mean of all")
        several = len({line[1] for line in lines}) > 1
        heads = [f"{method}, run {run}" if several else method for method, run, *_ in lines]
        cells = zip(self.header[first:], *(line[first:] for line in lines), strict=True)
        return Summary(("class", *heads), tuple(sorted(cells, key=lambda line: line[0] == "mean of all")), self.notes)

    def _repr_html_(self) -> str:
        def cells(tag: str, row: tuple[str, ...]) -> str:  # what is long may break, figures may not
            return "".join(f"<{tag}{' class=words' * (len(cell) > 18)}>{escape(cell)}</{tag}>" for cell in row)

        body = ""
        for method, group in groupby(self.rows, key=itemgetter(0)):  # a name stands once, beside all of its lines
            lines = [cells("td", row[1:]) for row in group]
            lines[0] = f'<td rowspan="{len(lines)}">{escape(method)}</td>{lines[0]}'
            body += "".join(f"<tr>{line}</tr>" for line in lines)
        notes = f"<p><small>{'<br>'.join(map(escape, self.notes))}</small></p>" if self.notes else ""
        return f"<table><thead><tr>{cells('th', self.header)}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def _all(self) -> list[tuple[str, ...]]:
        return [self.header, *self.rows]


def summary(table: str, results: Path = Path("book/results")) -> Summary:
    """Set a table's figures from `results`/results.csv beside those of paper.csv there.

    One line is one method, kind of run (a number, which the notes explain) and metric. A cell is the mean +- sample
    standard deviation over seeds. The mean over classes is taken within each seed that has all of the table's classes,
    and is "-" without such a seed.
    """
    ours = [row for row in read_results(results / "results.csv") if row["table"] == table]
    printed = {"rivals-cifar10": "table2", "rivals-mvtec": "table3"}.get(table, table)
    paper = [row for row in read_results(results / "paper.csv") if f"table{row['table']}" == printed]
    run = {row["class"] for row in ours}
    shown = [name for name in CLASSES[table] if name in run or (not run and any(p["class"] == name for p in paper))]

    lines = []
    for method, metric in dict.fromkeys((row["method"], row["metric"]) for row in paper):
        values = {r["class"].split(" ")[0]: r["value"] for r in paper if (r["method"], r["metric"]) == (method, metric)}
        cells = [values.get(name, "-") for name in ("mean", *shown)]
        lines.append((method, "paper", PAPER_METRICS[metric], "", *cells))
    groups: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
    for row in ours:
        encoder = f"{row['encoder']} ({row['weights']})"
        kind = f"{row['recipe']}, {encoder}, {row['size']} px, epochs {row['epochs']}, {row['dataset']}"
        kind += "".join(f", {name} {value}" for name, value in json.loads(row["overrides"] or "{}").items())
        groups.setdefault((row["method"], kind, row["metric"]), {})[row["class"], row["seed"]] = float(row["value"])
    numbers = {kind: str(i) for i, kind in enumerate(sorted({kind for _, kind, _ in groups}), 1)}
    for variant in TABLES[table]:
        for method, metrics in variant.rows.items():
            mine = [(kind, metric) for name, kind, metric in groups if name == method]
            for kind, metric in sorted(mine, key=lambda each: (each[0], [*metrics, each[1]].index(each[1]))):
                lines.append(
                    (method, numbers[kind], metric, *_cells(groups[method, kind, metric], shown, CLASSES[table]))
                )
            if not mine:
                lines.append((method, NOT_RUN, "", "", *["-"] * (len(shown) + 1)))
    notes = [f"Run {number}: {kind}." for kind, number in numbers.items()]
    notes += ["Cells: mean ± standard deviation over the seeds."] if run else []
    if missing := [name for name in CLASSES[table] if name not in run]:
        notes.append(f"{NOT_RUN.capitalize()}: {', '.join(missing)}.")
    return Summary(("method", "run", "metric", "seeds", "mean of all", *shown), tuple(lines), tuple(notes))


def _cells(values: dict[tuple[str, str], float], shown: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Seeds, the mean over all classes wanted, and a cell for each class that is shown, from {(class, seed): value}."""
    seeds = sorted({seed for _, seed in values}, key=int)
    counts = sorted({sum((name, seed) in values for seed in seeds) for name in {name for name, _ in values}})
    cells = [spread([values[name, seed] for seed in seeds if (name, seed) in values]) for name in shown]
    full = [seed for seed in seeds if all((name, seed) in values for name in wanted)]
    mean = spread([statistics.fmean(values[name, seed] for name in wanted) for seed in full])
    return [" to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))), mean, *cells]


def spread(values: Sequence[float]) -> str:
    """Write the mean +- sample standard deviation of some figures, the mean alone of one, "-" of none."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
