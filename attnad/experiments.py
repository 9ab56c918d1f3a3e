"""The paper's tables as lists of runs: train what is missing, keep every figure in one CSV, print both's figures.

A run is a configuration, and its folder is named after it, so that a run that several tables need is trained once,
a finished one is skipped and an interrupted one goes on. Nothing is chosen by its test results: all is fixed here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from PIL import Image

from attnad.baseline import BaselineConfig, evaluate_baseline
from attnad.checkpoint import load_json, save_json, write_atomically
from attnad.config import PRETRAINED, RunConfig, recipe
from attnad.data import CIFAR10_CLASSES, DataError, TestSet, _folder, _root, load_test
from attnad.metrics import METRICS
from attnad.run import evaluate_run, train_run
from attnad.state import TrainingError

# --- the tables ------------------------------------------------------------------------------------------------------

MVTEC_CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip


class Variant(NamedTuple):
    """One kind of run in a table: what differs from the recipe, and the rows it gives, {method: {metric: key}}.

    A key leads into what `attnad.run.evaluate_run` returns, dots into its inner tables. Without overrides (None) it is
    the baseline, nearest neighbours on frozen features.
    """

    overrides: dict[str, Any] | None
    rows: dict[str, dict[str, str]]


def _by_score(name: str) -> dict[str, str]:
    return {"image_auroc": f"image_auroc_by_score.{name}"}


_IMAGE = {name: name for name in METRICS if not name.startswith("pixel") and name != "aupro"}
_ALL = {name: name for name in METRICS}
_STUDY = {
    "pixel_auroc": "pixel_auroc",
    "image_auroc": "image_auroc",
    "image_auroc_defect": "by_kind.defect.image_auroc",
    "image_auroc_other": "by_kind.other.image_auroc",
    "image_auroc_by_attention": "image_auroc_by_score.attention",
}

_ADGAN = {"adgan.synthetic_fakes": False, "image_score": "adgan"}  # section 3.3 as it is printed
_FAKES = {"adgan.synthetic_fakes": True, "image_score": "adgan"}  # the other reading (D17)
_NO_GAMES = {"attention.adv_weight": 0.0, "attention.adv_ano_weight": 0.0}
_RECTANGLES = {"augment.whole_share": 0.0}
_PRETRAINED = {"attention.encoder": "efficientnet-lite0"}
_STAGE1 = {"adgan.epochs": 0, "adgan.synthetic_fakes": False, "image_score": "attention"}  # no stage 2 is needed
BASELINE = "nearest neighbours (frozen features)"


def _dcgan(*steps: str, **overrides: Any) -> Variant:
    """A row of table 1: a GAN on images, and as fakes x'_ano made by these steps of hard augmentation (D25)."""
    values = {
        "attention.epochs": 0, "attention.encoder": "resnet18", "adgan.pixels": True, "image_score": "adgan",
        "augment.whole_share": 1.0, "adgan.synthetic_fakes": bool(steps),
    }  # fmt: skip
    values |= {f"augment.{step}": step in steps for step in ("rotation", "permutation", "jitter")}
    values |= overrides
    return Variant(values, {})


def _named(variants: dict[str, Variant], metrics: dict[str, str]) -> list[Variant]:
    return [variant._replace(rows={name: metrics}) for name, variant in variants.items()]


# What each deviation from the paper does, on the embedded textures: method -> what differs from the recipe.
TEXTURE_STUDY: dict[str, dict[str, Any]] = {
    "as the recipe says": {},
    "unit weights (as printed)": {
        "attention.adv_weight": 1.0, "attention.adv_ano_weight": 1.0, "attention.g_weight": 1.0,
        "attention.att_weight": 1.0, "attention.kl_weight": 1.0,
    },
    "adversarial losses five times as heavy": {"attention.adv_weight": 0.05, "attention.adv_ano_weight": 0.05},
    "no adversarial losses": _NO_GAMES,
    "rectangles of 2 to 40 %": {"augment.box_area": (0.02, 0.4)},
    "rectangles only": _RECTANGLES,
    "ADGAN without synthetic fakes": {"adgan.synthetic_fakes": False},
    "ADGAN trains its features": {"adgan.train_features": True},
    "ADGAN with a slow moving average (0.99)": {"adgan.ema": 0.99},
    "ADGAN without moving average": {"adgan.ema": 0.0},
}  # fmt: skip

# What keeps the maps of recipe `quick` from real defects, on MVTec AD: stage 1 alone.
DEFECT_STUDY: dict[str, dict[str, Any]] = {
    "as the recipe says": {},
    "pretrained encoder": _PRETRAINED,
    "pretrained encoder, frozen": _PRETRAINED | {"attention.freeze_encoder": True},
    "the same encoder with random weights": {"attention.encoder": "efficientnet-lite0-random"},
    "pretrained encoder, no adversarial losses": _PRETRAINED | _NO_GAMES,
    "no adversarial losses": _NO_GAMES,
    "rectangles only": _RECTANGLES,
    "pretrained encoder, rectangles only": _PRETRAINED | _RECTANGLES,
    "40 epochs": {"attention.epochs": 40},
    "pretrained encoder, 40 epochs": _PRETRAINED | {"attention.epochs": 40},
    "pretrained encoder, rectangles only, 40 epochs": _PRETRAINED | _RECTANGLES | {"attention.epochs": 40},
}

TABLES: dict[str, list[Variant]] = {
    "table1": _named(
        {
            "base": _dcgan(),
            "rotate": _dcgan("rotation"),
            "perm": _dcgan("permutation"),
            "jitter": _dcgan("jitter"),
            "rotate+perm": _dcgan("rotation", "permutation"),
            "rotate+perm+jitter": _dcgan("rotation", "permutation", "jitter"),
            "semi (128 real anomalies)": _dcgan(**{"adgan.real_anomalies": 128}),
        },
        _by_score("adgan"),
    ),
    "table2": [
        Variant(None, {BASELINE: {"image_auroc": "image_auroc"}}),
        Variant(_ADGAN, {"ADGAN": _by_score("adgan")}),
        Variant(_FAKES, {"ADGAN + synthetic fakes": _by_score("adgan")}),
    ],
    "table3": [
        Variant(None, {BASELINE: _ALL}),
        Variant(_ADGAN, {"ADGAN": _ALL, "attention mean": _by_score("attention")}),
        Variant(_FAKES, {"ADGAN + synthetic fakes": _IMAGE}),  # stage 1, and so every map, is the same
    ],
    "table4": [
        Variant(_STAGE1 | {"attention.att_weight": 0.0}, {"L_adv^ano only": {"pixel_auroc": "pixel_auroc"}}),
        Variant(_STAGE1 | {"attention.adv_ano_weight": 0.0}, {"L_att only": {"pixel_auroc": "pixel_auroc"}}),
        Variant(_STAGE1, {"L_adv^ano + L_att": {"pixel_auroc": "pixel_auroc"}}),
    ],
    "table5": [
        Variant(
            _ADGAN,
            {
                "reconstruction loss (no ADGAN)": _by_score("reconstruction"),
                "stage-1 discriminator (no ADGAN)": _by_score("discriminator"),
                "attention mean": _by_score("attention"),
                "ADGAN": _by_score("adgan"),
            },
        ),
        Variant(_FAKES, {"ADGAN + synthetic fakes": _by_score("adgan")}),
    ],
    "textures": [Variant(overrides, {name: _STUDY}) for name, overrides in TEXTURE_STUDY.items()],
    "defects": [
        Variant(_STAGE1 | overrides, {name: {"pixel_auroc": "pixel_auroc", "aupro": "aupro", **_by_score("attention")}})
        for name, overrides in DEFECT_STUDY.items()
    ],
}

CLASSES = {
    "table1": CIFAR10_CLASSES, "table2": CIFAR10_CLASSES, "table3": MVTEC_CATEGORIES, "table4": MVTEC_CATEGORIES,
    "table5": CIFAR10_CLASSES, "textures": ("brick",), "defects": MVTEC_CATEGORIES,
}  # fmt: skip
PAPER_METRICS = {
    "image AUROC": "image_auroc",
    "pixel AUROC": "pixel_auroc",
    "classification accuracy": "balanced_accuracy",
}


# --- runs ------------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A run that a table needs, and the rows that it gives."""

    table: str
    name: str  # of the class or category
    variant: Variant
    config: RunConfig | BaselineConfig


def jobs(
    table: str,
    *,
    classes: Sequence[str],
    seeds: Sequence[int],
    recipe_name: str = "quick",
    overrides: dict[str, Any] | None = None,
) -> list[Job]:
    """List a table's runs, one for each seed, variant and class; `overrides` apply before those of the variants."""
    planned = []
    for variant, seed, name in product(TABLES[table], seeds, classes):
        data = {MVTEC_CATEGORIES: name, CIFAR10_CLASSES: "cifar10"}.get(CLASSES[table], "textures")
        normal_class = None if data == name else name
        if variant.overrides is None:
            config = BaselineConfig(
                data=data, normal_class=normal_class, size=128 if data == "cifar10" else 256, seed=seed
            )
        else:
            config = replace(recipe(recipe_name, data), normal_class=normal_class, seed=seed)
            config = override(override(config, overrides or {}), variant.overrides)
        planned.append(Job(table, name, variant, config))
    return planned


def override(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """Replace values of a configuration, named with a dot inside a part: {"adgan.epochs": 3}. Raises TypeError."""
    for name, value in values.items():
        part, _, field = name.rpartition(".")
        config = replace(config, **{part: replace(getattr(config, part), **{field: value})} if part else {field: value})
    return config


def short_hash(values: dict[str, Any]) -> str:
    """Eight hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def folder_name(config: RunConfig | BaselineConfig) -> str:
    """Name a run's folder: what it is, the hash of what decides its stage 1, the hash of its whole configuration."""
    values = asdict(config)
    kind, parts = "neighbours", [short_hash(values)]
    if isinstance(config, RunConfig):
        stage1 = {key: value for key, value in values.items() if key not in ("adgan", "image_score")}
        kind, parts = config.recipe, [short_hash(stage1), *parts]
    return "-".join(filter(None, [Path(config.data).name, config.normal_class, kind, f"seed{config.seed}", *parts]))


def measure(
    config: RunConfig | BaselineConfig,
    runs: Path,
    *,
    data_root: Path | None = None,
    device: str = "auto",
    commit: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Train and evaluate one run into its folder below `runs`, or read what it gave where that is done.

    Returns what `evaluate_run` returns, with "facts", "dataset" and "commit"; raises what training and data raise.
    """
    folder = runs / folder_name(config)
    path = folder / "metrics.json"
    if path.exists():
        return load_json(path)
    folder.mkdir(parents=True, exist_ok=True)
    where = {"device": device, "data_root": data_root}
    if isinstance(config, BaselineConfig):
        test = _load_test(config, data_root)
        outcome = evaluate_baseline(config, test, cache=runs / "features", **where)
    else:
        siblings = sorted(runs.glob(f"{folder.name.rpartition('-')[0]}-*/run.json"))
        stage1 = siblings[0].parent if siblings and config.attention.epochs else None
        run = train_run(config, folder, stage1=stage1, progress=progress, **where)
        test = _load_test(config, data_root)  # not before the weights are final
        outcome = evaluate_run(run, test) | {"facts": run.facts}
    outcome |= {
        "n_good": int((~test.labels).sum()),
        "dataset": _dataset(config.data, test, data_root),
        "commit": commit,
    }
    save_json(path, outcome)
    return outcome


def _load_test(config: RunConfig | BaselineConfig, data_root: Path | None) -> TestSet:
    return load_test(config.data, size=config.size, normal_class=config.normal_class, root=data_root)


def _dataset(data: str, test: TestSet, data_root: Path | None) -> str:
    """Name a data set as the paper does, and what was done to its files, if it was: JPEG coding, a smaller size."""
    if data == "textures":
        return data
    if data == "cifar10":
        return "CIFAR-10 (JPEG)" if test.names[0].endswith((".jpg", ".jpeg")) else "CIFAR-10"
    with Image.open(_folder(data, data_root) / test.names[0]) as image:
        side = max(image.size)
    return "MVTec AD" if side >= 700 else f"MVTec AD ({side} px)"  # the original's sides are 700 to 1,024 pixels


# --- results ---------------------------------------------------------------------------------------------------------

KEY = ("table", "dataset", "class", "method", "recipe", "encoder", "size", "epochs", "seed", "metric")
COLUMNS = (
    "table", "dataset", "class", "method", "recipe", "encoder", "weights", "size", "seed", "metric", "value", "n",
    "epochs", "commit", "torch", "device", "threads", "seconds", "date", "config",
)  # fmt: skip


def rows(job: Job, outcome: dict[str, Any]) -> list[dict[str, str]]:
    """Make a run's rows of results.csv from what `measure` gave; a metric that is undefined there has none."""
    config, facts, found = job.config, outcome["facts"], []
    if isinstance(config, BaselineConfig):
        kind, encoder, epochs = "-", "efficientnet-lite0", "0"
    else:
        kind, encoder = config.recipe, config.attention.encoder
        epochs = f"{config.attention.epochs}+{config.adgan.epochs}"
    weights = "imagenet" if encoder in PRETRAINED else "random"
    for method, metrics in job.variant.rows.items():
        for metric, key in metrics.items():
            if (value := _lookup(outcome, key)) is None:
                continue
            n = outcome[
                "n_pixel_images" if metric in ("aupro", *(m for m in METRICS if m.startswith("pixel"))) else "n"
            ]
            if key.startswith("by_kind."):
                n = outcome["n_good"] + _lookup(outcome, key.rpartition(".")[0])["n"]
            row = (
                job.table, outcome["dataset"], job.name, method, kind, encoder,
                weights, config.size, config.seed, metric, f"{value:.6f}", n,
                epochs, outcome["commit"], facts["torch"], facts["device"], facts["threads"],
                f"{sum(facts['seconds'].values()):.1f}", facts["date"], short_hash(asdict(config)),
            )  # fmt: skip
            found.append(dict(zip(COLUMNS, map(str, row), strict=True)))
    return found


def _lookup(values: Any, key: str) -> Any:
    """What a dotted key leads to; None where the way ends earlier."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def read_results(path: Path) -> list[dict[str, str]]:
    """Read results.csv or paper.csv, no row where the file is missing.

    Raises DataError, naming the file, on other columns and where it is damaged.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            head, *lines = csv.reader(file)
        if path.name == "results.csv" and tuple(head) != COLUMNS:
            raise DataError(f"{path}: has not the columns {', '.join(COLUMNS)}; move it away and reproduce again")
        found = [dict(zip(head, line, strict=True)) for line in lines if line]
        for row in found:
            float(row["value"]), int(row.get("seed", 0))
    except DataError:
        raise
    except (ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: is damaged ({error}); restore it, or move it away and reproduce again") from error
    return found


def write_results(path: Path, new: Iterable[dict[str, str]]) -> None:
    """Put rows into results.csv in place of those with the same KEY, sorted, safe beside other writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        table = {tuple(row[name] for name in KEY): row for row in [*read_results(path), *new]}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table[key] for key in sorted(table))
        write_atomically(path, text.getvalue())


def current_commit() -> str:
    """Name the commit of the checkout that this package lies in, "-dirty" if the package differs; "" outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # in somebody else's repository the package is not tracked
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


# --- engines: each takes jobs and gives (job, outcome or error) as they end ------------------------------------------


def run_locally(planned: Sequence[Job], **arguments: Any) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
    """Run jobs one after the other in this process."""
    for job in planned:
        try:
            yield job, measure(job.config, **arguments)
        except Exception as error:
            if not isinstance(error, (ValueError, RuntimeError, OSError)):
                traceback.print_exc()  # a mistake of the program rather than of its input
            yield job, error


def run_on_ray(
    planned: Sequence[Job], *, jobs_per_gpu: int = 1, **arguments: Any
) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
    """Run jobs all at once on a Ray cluster: the one that RAY_ADDRESS or `ray start` names, else this machine alone.

    Each takes one CPU and, where the cluster has GPUs, a share of one. A job whose worker dies is run again, up to
    three times, and goes on from its last saved state where the machines share the folder of runs. Only this process
    writes results. Raises TrainingError where Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    try:
        import ray
    except ImportError as error:
        raise TrainingError("--engine ray needs an extra: pip install 'attnad[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        gpus = 1 / jobs_per_gpu if ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(measure)
        waiting = {remote.remote(job.config, **arguments, progress=False): job for job in planned}
        while waiting:
            (ended,), _ = ray.wait(list(waiting))
            job = waiting.pop(ended)
            try:
                yield job, ray.get(ended)
            except Exception as error:  # Ray's own, or one that wraps the job's
                yield job, getattr(error, "cause", None) or error
    finally:
        if ours:
            ray.shutdown()


# --- reproduce -------------------------------------------------------------------------------------------------------


def reproduce(
    table: str,
    *,
    classes: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    recipe_name: str = "quick",
    overrides: dict[str, Any] | None = None,
    data_root: Path | None = None,
    device: str = "auto",
    engine: str = "local",
    jobs_per_gpu: int = 1,
    runs: Path = Path("runs"),
    results: Path = Path("book/results"),
) -> Summary:
    """Run what is missing of a table, write results.csv as each run ends, and return the table beside the paper's.

    `classes` defaults to all of the table's; of MVTec AD, to the categories that are there. Raises TrainingError at
    the end where runs failed, naming each; the others have run by then.
    """
    root = _root(data_root)
    if CLASSES[table] is MVTEC_CATEGORIES:
        root = root / "mvtec_ad" if (root / "mvtec_ad").is_dir() else root
        classes = classes or [name for name in MVTEC_CATEGORIES if (root / name / "train").is_dir()]
        if not classes:
            raise DataError(
                f"{root}: holds no category of MVTec AD, such as bottle/train; name its folder: --data-root"
            )
    planned = jobs(table, classes=classes or CLASSES[table], seeds=seeds, recipe_name=recipe_name, overrides=overrides)
    arguments = {"runs": runs.resolve(), "data_root": root.resolve(), "device": device, "commit": current_commit()}
    if engine == "ray":
        ended = run_on_ray(planned, jobs_per_gpu=jobs_per_gpu, **arguments)
    else:
        ended = run_locally(planned, **arguments)
    failed = []
    for i, (job, outcome) in enumerate(ended, 1):
        label = f"[{i}/{len(planned)}] {job.name}, seed {job.config.seed}, {next(iter(job.variant.rows))}"
        if isinstance(outcome, Exception):
            failed.append(f"{label}: {type(outcome).__name__}: {outcome}")
            print(f"{failed[-1]}", file=sys.stderr)
            continue
        new = rows(job, outcome)
        write_results(results / "results.csv", new)
        print(f"{label}: " + ", ".join(f"{row['metric']} {float(row['value']):.3f}" for row in new), flush=True)
    found = summary(table, results)
    print(found.text())
    if failed:
        raise TrainingError(f"{len(failed)} of {len(planned)} runs failed:\n" + "\n".join(failed))
    return found


# --- tables for people -----------------------------------------------------------------------------------------------

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

    def _repr_html_(self) -> str:
        def cells(tag: str, row: tuple[str, ...]) -> str:
            return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)

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
    paper = [row for row in read_results(results / "paper.csv") if f"table{row['table']}" == table]
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
        kind = kind.removeprefix("-, ")  # the baseline has no recipe
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
    cells = [_spread([values[name, seed] for seed in seeds if (name, seed) in values]) for name in shown]
    full = [seed for seed in seeds if all((name, seed) in values for name in wanted)]
    mean = _spread([statistics.fmean(values[name, seed] for name in wanted) for seed in full])
    return [" to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))), mean, *cells]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
