"""What the paper claims beside what was measured: each verdict comes from the rows of results.csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from attnad.study.results import read_results
from attnad.study.summary import NOT_RUN, Summary, spread
from attnad.study.tables import CIFAR10_CLASSES, PAPER_METRICS

MARGIN = 0.03  # an AUROC less than this away counts as level
FULL, SHORTENED = ("paper",), ("quick", "dcgan")  # recipes
AS_IT_STANDS = ("", '{"attention.renew_statistics": false}')  # overrides: none, or what `quick` was before D34


class Claim(NamedTuple):
    """A method reaches its printed figure or, with `than`, is ahead of another method, all else equal.

    `rows` are the (table, method) that the figure may stand under, `than` those of the other; `printed` names the
    paper's table, method and, for two methods, the other one.
    """

    text: str
    metric: str
    rows: tuple[tuple[str, str], ...]
    printed: tuple[str, ...] = ()
    than: tuple[tuple[str, str], ...] = ()


_ADGAN = (("table5", "ADGAN"), ("table2", "ADGAN"))
_BOTH = (("table4", "L_adv^ano + L_att"), ("table3", "ADGAN"))  # one stage 1
CLAIMS = {
    "augmentation": Claim(
        "Table 1: rotated, permuted and jittered images as fakes help a GAN", "image_auroc",
        (("table1", "rotate+perm+jitter"),), ("1", "rotate+perm+jitter", "base"), (("table1", "base"),),
    ),
    "jitter": Claim(
        "Table 1: jittered images alone harm it", "image_auroc",
        (("table1", "base"),), ("1", "base", "jitter"), (("table1", "jitter"),),
    ),
    "one class": Claim("Table 2: ADGAN tells one class from nine others", "image_auroc", _ADGAN, ("2", "Proposed")),
    "maps": Claim("Table 3: the map finds defects", "pixel_auroc", (("table3", "ADGAN"),), ("3", "Proposed")),
    "accuracy": Claim(
        "Table 3: images are sorted at a threshold, by balanced accuracy", "balanced_accuracy",
        (("table3", "ADGAN"),), ("3", "Proposed"),
    ),
    "attention loss": Claim(
        "Table 4: L_adv^ano alone does not draw the map: with L_att it is better", "pixel_auroc", _BOTH,
        ("4", "L_adv^ano + L_att", "L_adv^ano only"), (("table4", "L_adv^ano only"),),
    ),
    "two losses": Claim(
        "Table 4: L_adv^ano adds to L_att", "pixel_auroc", _BOTH,
        ("4", "L_adv^ano + L_att", "L_att only"), (("table4", "L_att only"),),
    ),
    "reconstruction": Claim(
        "Table 5: ADGAN judges images better than the reconstruction error", "image_auroc", _ADGAN,
        ("5", "ADGAN", "reconstruction loss (no ADGAN)"), (("table5", "reconstruction loss (no ADGAN)"),),
    ),
    "discriminator": Claim(
        "Table 5: and better than the discriminator of stage 1", "image_auroc", _ADGAN,
        ("5", "ADGAN", "stage-1 discriminator (no ADGAN)"), (("table5", "stage-1 discriminator (no ADGAN)"),),
    ),
    "second stage": Claim(
        "Section 3.3: images need a second stage; against the mean of the map, which the paper does not list",
        "image_auroc", (*_ADGAN, ("table3", "ADGAN")), (), (("table5", "attention mean"), ("table3", "attention mean")),
    ),
}  # fmt: skip


class Measured(NamedTuple):
    """Figures of a place, a category or the mean over classes of CIFAR-10, in the longest runs: seed by seed."""

    place: str
    classes: int
    epochs: str
    ours: list[float]
    other: list[float]  # the other method's, or the printed figure

    def side(self) -> int:
        """1 where it is ahead by the margin or more, and in every seed; -1 where it is behind so; 0 between the two."""
        gaps = [a - b for a, b in zip(self.ours, self.other, strict=True)]
        return next((side for side in (1, -1) if fmean(gaps) * side >= MARGIN and min(g * side for g in gaps) > 0), 0)


class _Key(NamedTuple):
    kind: tuple  # of run: pretrained or not, epochs, encoder, size, data set, with overrides or without
    place: str
    name: str  # of the class or category
    seed: str


def measure(claim: Claim, results: Path, recipes: Sequence[str]) -> list[Measured]:
    """What runs of recipes, as they stand or stood, say of a claim; nothing where nothing has been run.

    Of each place those runs count that have the most classes, then a pretrained encoder, then the most epochs.
    """
    rows = [
        row
        for row in read_results(results / "results.csv")
        if row["metric"] == claim.metric and row["recipe"] in recipes and row["overrides"] in AS_IT_STANDS
    ]
    ours, other = (
        {_key(row): float(row["value"]) for row in rows if (row["table"], row["method"]) in names}
        for names in (claim.rows, claim.than)
    )
    if not claim.than:
        table, method = claim.printed
        printed = _printed(claim.metric, table, method, results)
        other = {key: printed.get(key.name, printed["mean"]) for key in ours}
    found = []
    for place in dict.fromkeys(key.place for key in ours):
        kinds: dict[tuple, list[_Key]] = {}
        for key in ours.keys() & other.keys():
            if key.place == place:
                kinds.setdefault(key.kind, []).append(key)
        if kinds:
            keys = max(kinds.values(), key=lambda keys: (len({key.name for key in keys}), keys[0].kind))
            seeds = sorted({key.seed for key in keys})
            means = [[fmean(side[key] for key in keys if key.seed == seed) for seed in seeds] for side in (ours, other)]
            epochs = "+".join(map(str, keys[0].kind[1]))
            found.append(Measured(place, len({key.name for key in keys}), epochs, *means))
    return found


def verdict(claim: Claim, results: Path) -> str:
    """Say in a word whether a claim holds, by the full runs, or by shortened ones where there are no others."""
    full = measure(claim, results, FULL)
    found = full or measure(claim, results, SHORTENED)
    holds = [each.place for each in found if _holds(claim, each)]
    fails = [each.place for each in found if not _holds(claim, each)]
    if not found:
        return NOT_RUN
    yes, no = _words(claim)
    word = yes if not fails else no if not holds else f"{yes} on {', '.join(holds)}, {no} on {', '.join(fails)}"
    return word if full else f"{word} in shortened runs"


def claims(results: Path = Path("book/results")) -> Summary:
    """The paper's claims, what was measured, a verdict, and how sure it is: a line for each place.

    Runs of recipe `paper` first; shortened ones, of recipes `quick` and `dcgan`, only of places that have no others.
    """
    lines = []
    for claim in CLAIMS.values():
        text = claim.text
        if claim.printed:
            table, method, *against = claim.printed
            means = [_printed(claim.metric, table, name, results)["mean"] for name in (method, *against)]
            text += " (" + " against ".join(f"{mean:g}" for mean in means) + ")"
        full = measure(claim, results, FULL)
        places = {each.place for each in full}
        short = [each for each in measure(claim, results, SHORTENED) if each.place not in places]
        for each in full + short:
            place = f"{each.place}, {each.classes} classes" if each.place == "CIFAR-10" else each.place
            other = spread(each.other) if claim.than else f"printed {each.other[0]:g}"
            sure = f"{len(each.ours)} seed{'s' * (len(each.ours) > 1)}, {each.epochs} epochs"
            sure += ", shortened" * (each in short)
            word = _words(claim)[not _holds(claim, each)]
            lines.append((text, place, spread(each.ours), other, word, sure))
        if not full + short:
            lines.append((text, "-", "-", "-", NOT_RUN, "-"))
    notes = (
        "In brackets the figures that the paper prints, means over its classes.",
        f"A claim holds where the difference is {MARGIN} or more and has one sign in every seed; a printed figure is "
        f"reached where it is missed by less than {MARGIN}.",
    )
    header = ("the paper says", "measured on", "measured", "against", "verdict", "how sure")
    return Summary(header, tuple(lines), notes)


def _words(claim: Claim) -> tuple[str, str]:
    return ("holds", "not borne out") if claim.than else ("reached", "missed")


def _holds(claim: Claim, each: Measured) -> bool:
    return each.side() == 1 or (not claim.than and each.side() == 0)


def _key(row: dict[str, str]) -> _Key:
    epochs = row["epochs"].split("+")
    if row["metric"].startswith("pixel"):
        del epochs[1:]  # maps are the first stage's
    shape = tuple(map(int, epochs)), row["encoder"], row["size"], row["dataset"], row["overrides"] == ""
    kind = row["weights"] == "imagenet", *shape
    place = "CIFAR-10" if row["class"] in CIFAR10_CLASSES else row["class"]
    return _Key(kind, place, row["class"], row["seed"])


def _printed(metric: str, table: str, method: str, results: Path) -> dict[str, float]:
    """A row of the paper's tables, {class: figure}, with the "mean" of all."""
    return {row["class"].split(" ")[0]: float(row["value"]) for row in read_results(results / "paper.csv")
            if (row["table"], row["method"], PAPER_METRICS[row["metric"]]) == (table, method, metric)}  # fmt: skip
