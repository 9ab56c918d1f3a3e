"""The rule that chooses a detector, on rows by hand."""

from __future__ import annotations

import pytest

from attnad.errors import DataError
from attnad.study import sets
from attnad.study.choice import PEERS, choose, gaps, table
from attnad.study.moved import MOVED


def rows(figures: dict[str, dict[str, tuple[float, float]]], seeds: int = 1) -> list[dict[str, str]]:
    """Rows of sets.csv from {detector: {set: (image AUROC as is, moved)}}."""
    empty = dict.fromkeys(sets.COLUMNS, "")
    return [
        empty | {"set": name, "detector": detector, "seed": str(seed), "size": "256", "moved": moved,
                 "image_auroc": f"{as_is if moved == 'as is' else otherwise:.4f}"}
        for detector, found in figures.items() for name, (as_is, otherwise) in found.items()
        for seed in range(seeds) for moved in MOVED
    ]  # fmt: skip


PEERS_FIGURES = {
    "padim": {"a": (0.9, 0.6), "b": (0.5, 0.5), "c": (0.7, 0.7)},
    "patchcore": {"a": (0.8, 0.7), "b": (0.9, 0.8), "c": (0.7, 0.7)},
    "neighbours": {"a": (0.8, 0.5), "b": (0.8, 0.8), "c": (0.7, 0.7)},
}


def test_a_gap_is_to_the_best_peer_as_is_and_moved_equally():
    found = gaps(rows(PEERS_FIGURES | {"new": {"a": (0.95, 0.76), "b": (0.9, 0.7), "c": (0.7, 0.7)}}, seeds=2))
    # a: (0.95 - 0.9 + 0.76 - 0.7) / 2; b: (0 + 0.7 - 0.8) / 2
    assert found["new"] == pytest.approx({"a": 0.055, "b": -0.05, "c": 0})
    assert found["padim"] == pytest.approx({"a": -0.05, "b": -0.35, "c": 0})


def test_the_highest_mean_is_chosen_and_holds_where_it_wins_on_sets_left_out():
    ours = {
        "even": {"a": (0.91, 0.71), "b": (0.92, 0.82), "c": (0.73, 0.73)},
        "lower": {"a": (0.91, 0.71), "b": (0.90, 0.80), "c": (0.70, 0.70)},
    }
    found = choose(rows(PEERS_FIGURES | ours))
    assert (found.winner, found.holds, found.incomplete) == ("even", True, ())
    assert found.means["even"] == pytest.approx(0.02)
    assert found.worst["even"] == ("a", pytest.approx(0.01))
    assert found.folds == dict.fromkeys("abc", "even")
    assert found.left_out == pytest.approx(0.02)


def test_a_choice_that_one_set_makes_does_not_hold():
    """Of `lucky`, set a makes the choice: without a, `even` is chosen, which is behind on a."""
    ours = {
        "even": {"a": (0.90, 0.70), "b": (0.91, 0.81), "c": (0.71, 0.71)},
        "lucky": {"a": (0.99, 0.79), "b": (0.89, 0.79), "c": (0.69, 0.69)},
    }
    found = choose(rows(PEERS_FIGURES | ours))
    assert found.winner == "lucky"
    assert found.folds == {"a": "even", "b": "lucky", "c": "lucky"}
    # even on a: 0; lucky on b and c: -0.01 each; `even` on all: +0.00667
    assert found.left_out == pytest.approx(-0.02 / 3)
    assert not found.holds


def test_ties_go_to_the_better_worst_set_and_peers_of_others_are_never_chosen():
    ours = {
        "uneven": {"a": (0.84, 0.64), "b": (0.9, 0.8), "c": (0.76, 0.76)},
        "level": {"a": (0.90, 0.70), "b": (0.9, 0.8), "c": (0.699, 0.699)},
    }
    found = choose(rows(PEERS_FIGURES | ours))
    assert found.means["uneven"] - found.means["level"] == pytest.approx(1e-3 / 3, abs=1e-6)
    assert found.winner == "level"
    best = PEERS_FIGURES | {"patchcore": {"a": (1, 1), "b": (1, 1), "c": (1, 1)}}
    assert choose(rows(best | ours)).winner not in ("padim", "patchcore")


def test_what_is_not_measured_whole_takes_no_part_and_is_named():
    whole = {"new": {"a": (0.9, 0.7), "b": (0.9, 0.8), "c": (0.7, 0.7)}}
    found = rows(PEERS_FIGURES | whole | {"partly": {"a": (1, 1)}, "half": {"a": (1, 1), "b": (1, 1), "c": (1, 1)}})
    found = [row for row in found if (row["detector"], row["set"], row["moved"]) != ("half", "c", "jpeg 50")]
    found += rows({"new": {"d": (0.6, 0.6)}})
    choice = choose(found)
    assert (choice.winner, choice.incomplete) == ("new", ("d", "half", "partly"))
    lines = table(found).text()
    assert "Left out of the choice, not measured whole: d, half, partly." in lines
    assert "Chosen: new. It also wins on sets left out" in lines
    with pytest.raises(DataError, match="needs two sets or more on which padim, patchcore, neighbours are"):
        choose(rows(whole))
    assert set(PEERS) == {"padim", "patchcore", "neighbours"}


def test_the_table_has_a_line_for_each_set_and_the_means():
    found = rows(PEERS_FIGURES | {"new": {"a": (0.95, 0.76), "b": (0.9, 0.7), "c": (0.7, 0.7)}})
    for row in found:
        row["pixel_auroc"] = "0.8000" if row["set"] != "c" else ""  # it has no masks
    lines = {line[:2]: line for line in table(found).rows}
    assert lines["a", "new"][2:6] == ("0.950", "0.760", "+0.055", "0.800")
    assert lines["c", "new"][2:6] == ("0.700", "0.700", "+0.000", "-")
    assert lines["mean of 3", "new"][2:7] == ("0.850", "0.720", "+0.002", "0.800", "0.800")
    assert lines["mean of 3", "padim"][2] == "0.700"
