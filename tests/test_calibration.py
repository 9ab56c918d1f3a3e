"""p-values, thresholds for a rate and Benjamini-Hochberg: against references, and in every place that shows them."""

from __future__ import annotations

import shutil
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import fails
from photographs import N, rows
from scipy.stats import false_discovery_control

import attnad
from attnad.cli import main
from attnad.errors import CheckpointError, SettingError
from attnad.report.report import HEAD, table
from attnad.run.calibration import batch_threshold, flag_batch, in_words, p_values, threshold_for, too_few
from attnad.run.run import load_run
from attnad.training.storage import load_json, save_json

few = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8)  # with ties


# --- what is computed ------------------------------------------------------------------------------------------------


@given(few, few)
def test_a_p_value_counts_what_is_as_odd(scores, calibration):
    wanted = [(1 + sum(known >= score for known in calibration)) / (len(calibration) + 1) for score in scores]
    assert p_values(scores, calibration).tolist() == wanted


@pytest.mark.parametrize("scores", [range(6), (0, 0, 1, 1, 1, 2)], ids=["distinct", "ties"])
def test_a_good_photograph_is_as_odd_as_a_at_a_rate_of_at_most_a(scores):
    """Whichever of the scores is the new one, and in whatever order: all cases, each as likely."""
    found = [Fraction(p_values(new, known)[0]).limit_denominator(99) for *known, new in each_new(scores)]
    for a in (Fraction(k, 12) for k in range(13)):
        rate = Fraction(sum(p <= a for p in found), len(found))
        assert rate <= a
        if len(set(scores)) == len(scores) and (a * 6).denominator == 1:
            assert rate == a  # and not far below, where there are no ties


def each_new(scores):
    return ((*order[:-1], [order[-1]]) for order in permutations(map(float, scores)))


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_batches_are_flagged_as_scipy_does(values, rate):
    wanted = false_discovery_control(values)
    clear = abs(wanted - rate) > 1e-6  # where the last digit does not decide
    assert (flag_batch(values, rate) == (wanted <= rate))[clear].all()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 19))
def test_a_batch_is_flagged_by_exact_arithmetic_at_the_edge(counts, percent):
    """p-values k / 20 often lie at the limit itself, where they are flagged."""
    exact, rate, n = [Fraction(count, 20) for count in counts], Fraction(percent, 20), len(counts)
    last = max((p for p in exact if p <= rate * sum(other <= p for other in exact) / n), default=0)
    found = flag_batch([float(p) for p in exact], float(rate))
    assert found.tolist() == [p <= last for p in exact]


@pytest.mark.parametrize("odd", [0, 1])
def test_the_share_of_good_ones_among_the_flagged_is_as_promised(odd):
    """Five good photographs in all orders, three of them the calibration, beside an odd one, or none."""
    for percent in (25, 30, 50, 75):
        shares = []
        for order in permutations(range(5)):
            batch = [*order[3:], *[9] * odd]
            flagged = flag_batch(p_values(batch, order[:3]), percent / 100)
            shares.append(Fraction(int(flagged[:2].sum()), max(int(flagged.sum()), 1)))
        assert 0 < sum(shares) / len(shares) <= Fraction(percent, 100) * Fraction(2, 2 + odd)


@given(few, few, st.floats(0.01, 0.99))
def test_the_threshold_of_a_batch_parts_what_is_flagged_from_the_rest(scores, calibration, rate):
    threshold = batch_threshold(scores, calibration, rate)
    flagged = flag_batch(p_values(scores, calibration), rate)
    assert [score > threshold for score in scores] == flagged.tolist()
    assert threshold in scores or flagged.all()


def test_a_batch_that_is_too_large_for_its_calibration_is_told_so():
    calibration, scores = np.arange(9.0), np.zeros(40)
    scores[:3] = 10
    assert "3 of 40 images look odder than all 9 good ones" in too_few(scores, calibration, 0.5)
    assert "it takes 8 such images among 40" in too_few(scores, calibration, 0.5)
    for n, enough in ((7, False), (8, True)):
        scores[:n] = 10
        assert flag_batch(p_values(scores, calibration), 0.5).any() == enough
        assert (too_few(scores, calibration, 0.5) == "") == enough
    assert too_few(np.zeros(40), calibration, 0.5) == ""  # nothing is odd
    assert flag_batch([], 0.1).tolist() == []


def test_what_a_p_value_says():
    assert in_words(4 / 1000, 999) == "Of a thousand good photographs about 4 look as odd as this"
    assert in_words(1 / 210, 209) == "Fewer than one in 210 good photographs looks as odd as this"
    assert in_words(2 / 2000, 1999) == "Of a thousand good photographs about 1 looks as odd as this"
    assert in_words(2 / 5001, 5000) == "About one in 2500 good photographs looks as odd as this"
    assert in_words(3 / 7, 6) == "Of a hundred good photographs about 43 look as odd as this"
    assert in_words(1, 6) == "Of a hundred good photographs about 100 look as odd as this"


def test_a_rate_needs_enough_photographs():
    assert threshold_for(range(99), 0.01) == 98
    assert threshold_for(range(19), 0.05) == 18
    for share, photographs in ((1, 99), (0.1, 990)):
        said = f"needs the scores of 99 .* has 98; choose 0.011 or more, .* {photographs} "
        with pytest.raises(SettingError, match=said):
            threshold_for(range(98), 0.01, share=share)
    with pytest.raises(CheckpointError, match="by a version that kept no scores"):
        threshold_for([], 0.01)


# --- where it is shown -----------------------------------------------------------------------------------------------


def wanted_of(run: Path, found: list[dict[str, str]]) -> list[float]:
    known = load_json(run / "run.json")["held_out_scores"]
    return [(1 + sum(score >= float(row["score"]) for score in known)) / (len(known) + 1) for row in found]


@pytest.fixture(scope="module")
def whole(photographs, tmp_path_factory) -> Path:
    """A copy of the run whose calibration is many scores, so that p-values differ: not to be changed."""
    folder = tmp_path_factory.mktemp("calibrated")
    run = Path(shutil.copytree(photographs / "whole", folder / "whole"))
    facts = load_json(run / "run.json")
    scores = sorted(attnad.load(run).decision_function(photographs / "new").tolist(), reverse=True)
    facts["held_out_scores"] = np.linspace(scores[-1], scores[4], 39).tolist()
    save_json(run / "run.json", facts | {"calibrated_on": "each photograph, by a detector fitted to the others"})
    return run


@pytest.mark.usefixtures("elsewhere")
def test_the_table_and_the_report_have_p_values(whole, photographs):
    command = ["score", str(whole), str(photographs / "new"), "--out", "out"]
    assert main(command) == 0
    found = rows()
    assert [float(row["p_value"]) for row in found] == wanted_of(whole, found)
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert page.count("good photographs") == N
    assert page.count("Fewer than one in 40 good photographs looks as odd as this") == 4
    # A table of an earlier version is completed; its photographs are not scored again.
    for torn in (0, 30):  # characters that a kill has cut off
        old = [[row[name] for name in HEAD if name != "p_value"] for row in found]
        text = table([[name for name in HEAD if name != "p_value"], *old])
        Path("out/scores.csv").write_text(text[: len(text) - torn], newline="")
        assert main(command) == 0
        again = rows()
        whole_lines = len(found) - bool(torn)
        assert [{**row, "map": ""} for row in again[:whole_lines]] == [
            {**row, "map": ""} for row in found[:whole_lines]
        ]
        # The photograph of the torn line is scored again, alone: another batch gives another last digit.
        assert [row["file"] for row in again] == [row["file"] for row in found]
        assert float(again[-1]["score"]) == pytest.approx(float(found[-1]["score"]), abs=1e-5)
        assert [float(row["p_value"]) for row in again] == wanted_of(whole, again)


@pytest.mark.usefixtures("elsewhere")
def test_the_table_that_follows_a_folder_has_them_too(whole, photographs, monkeypatch):
    """Half of the lines are of an earlier version."""

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("attnad.report.follow.SETTLED", 0.0)
    monkeypatch.setattr("attnad.report.follow.time.sleep", stop)
    shutil.copytree(photographs / "new", "new")
    command = ["score", str(whole), "new", "--follow", "--out", "out"]
    assert main(command) == 0
    found = rows()
    assert len(found) == N
    assert [float(row["p_value"]) for row in found] == wanted_of(whole, found)
    old = [[row[name] for name in HEAD if name != "p_value"] for row in found[: N // 2]]
    Path("out/scores.csv").write_text(table([[name for name in HEAD if name != "p_value"], *old]), newline="")
    assert main(command) == 0
    assert [{**row, "map": ""} for row in rows()] == [{**row, "map": ""} for row in found]


@pytest.mark.usefixtures("elsewhere")
def test_a_batch_is_flagged_by_its_p_values(whole, photographs, capsys):
    new = photographs / "new"
    assert main(["score", str(whole), str(new), "--out", "out", "--expected-false", "0.25"]) == 0
    assert "4 of 40 images look anomalous" in capsys.readouterr().out
    found = rows()
    flagged = false_discovery_control(wanted_of(whole, found)) <= 0.25
    assert [row["anomalous"] == "yes" for row in found] == flagged.tolist()
    assert {row["threshold"] for row in found} == {found[4]["score"]}  # the highest that is not flagged
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert page.count('<li class="flagged"') == 4
    assert "for a share of 0.25 normal ones among the flagged images, by 39 normal images" in page
    assert main(["score", str(whole), str(new), "--out", "out", "--expected-false", "0.05"]) == 0
    said = capsys.readouterr().out
    assert "0 of 40 images look anomalous" in said
    assert "4 of 40 images look odder than all 39 good ones" in said
    assert "it takes 20 such images" in said


@pytest.mark.usefixtures("elsewhere")
def test_what_does_not_go_together_is_refused(whole, photographs, capsys):
    def said(*more: str, run: Path = whole) -> str:
        return fails(capsys, "score", run, photographs / "new", "--out", "no", *more)

    assert "with --follow use --false-alarms" in said("--expected-false", "0.1", "--follow")
    for flag, value in (("--threshold", "1.0"), ("--false-alarms", "0.1")):
        both = said("--expected-false", "0.1", flag, value)
        assert f"{flag} {value} and --expected-false 0.1 each say where to flag; give one of them" in both
    for rate in ("0", "1", "nan"):
        assert "an expected share of false ones" in said("--expected-false", rate)
    more = said("--expected-false", "0.01")
    assert "needs the scores of 99 good photographs" in more
    assert more.endswith("the run has 39; choose 0.025 or more, or train on about 99 photographs")
    assert "train on about 990 photographs" in said("--expected-false", "0.01", run=photographs / "whole")
    assert not Path("no").exists()


@pytest.mark.usefixtures("elsewhere")
def test_a_run_of_an_earlier_version_has_none(whole, photographs, capsys):
    earlier = Path(shutil.copytree(whole, "earlier"))
    facts = load_json(earlier / "run.json")
    del facts["held_out_scores"]
    save_json(earlier / "run.json", facts)
    command = ["score", str(earlier), str(photographs / "new"), "--out", "out"]
    assert "kept no scores" in fails(capsys, *command, "--expected-false", "0.1")
    assert main(command) == 0
    assert capsys.readouterr().out.count("p-values") == 1
    assert {row["p_value"] for row in rows()} == {""}
    assert "good photographs" not in Path("out/report.html").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match="kept no scores"):
        attnad.load(earlier).p_values(photographs / "new")


def test_the_detector_gives_them(whole, photographs):
    detector = attnad.load(whole, device="cpu")
    scores = detector.decision_function(photographs / "new")
    found = detector.p_values(photographs / "new")
    assert found.tolist() == p_values(scores, load_run(whole).calibration).tolist()
    assert len(set(found)) > 5
