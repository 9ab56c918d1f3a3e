"""The report: a table that parses, heat maps that open, and a page that is whole, safe and alone."""

import base64
import csv
import hashlib
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from made import write_report
from PIL import Image

from attnad.report.report import card, heat_map, heat_overlay, write_page

NASTY = [
    "plain.png",
    "<script>alert(1)</script>.png",
    '"><img src=x onerror="alert(1)">.png',
    "it's & <b>co</b>.jpg",
    "two\r\nlines.png",
    "אבג\u202egnp.exe",
    os.fsdecode(b"not-utf8-\xff\xfe.png"),
    "=cmd|' /C calc'!A0.png",
    "$title ${n} $$ %s {x}.png",
    "x" * 250 + ".png",
    "..",
]
FIELDS = ["file", "score", "p_value", "anomalous", "threshold", "map_mean", "map_max", "map"]


class Page(HTMLParser):
    """Every element as (tag, attributes), the text inside each, and whether all that opened was closed in order."""

    VOID = ("meta", "link", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute of <{tag}> stands twice"
        self.elements.append((tag, dict(attrs), []))
        if tag not in self.VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def all(self, tag, **attributes):
        found = [e for e in self.elements if e[0] == tag and attributes.items() <= e[1].items()]
        return [(attrs, "".join(text)) for _, attrs, text in found]


def example(n=3, s=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        "paths": [Path(f"folder/{i}.png") for i in range(n)],
        "images": torch.randint(256, (n, 3, s, s), dtype=torch.uint8, generator=rng),
        "sizes": [(20, 10)] * n,
        "maps": torch.rand(n, s, s, generator=rng),
        "scores": torch.randn(n, generator=rng).tolist(),
        "threshold": 0.1,
        "title": "Bottles",
        "notes": {"Run": "runs/bottle", "Seed": "0"},
    }


def read(out):
    with open(out / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return rows, Page((out / "report.html").read_text(encoding="utf-8"))


def picture(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(";base64,")[2])))


def test_table_page_and_maps_agree_and_come_worst_first(tmp_path):
    given = example(n=7)
    given["scores"][2] = given["threshold"]  # not above it, so it passes
    given["scores"][4] = given["scores"][1]  # a tie keeps the order given
    assert write_report(tmp_path / "new" / "out", **given) == tmp_path / "new" / "out" / "report.html"
    rows, page = read(tmp_path / "new" / "out")

    order = sorted(range(7), key=lambda i: (-given["scores"][i], i))
    assert list(rows[0]) == FIELDS
    assert [row["file"] for row in rows] == [str(given["paths"][i]) for i in order]
    assert [float(row["score"]) for row in rows] == [given["scores"][i] for i in order]
    assert [row["anomalous"] for row in rows] == ["yes" if given["scores"][i] > 0.1 else "no" for i in order]
    assert {float(row["threshold"]) for row in rows} == {0.1}
    for row, i in zip(rows, order, strict=True):
        assert float(row["map_mean"]) == pytest.approx(given["maps"][i].mean().item())
        assert float(row["map_max"]) == pytest.approx(given["maps"][i].max().item())

    assert [title["title"] for title, _ in page.all("h2")] == [row["file"] for row in rows]
    verdicts = [attrs["class"] for attrs, _ in page.all("li")]
    assert verdicts == ["flagged" if row["anomalous"] == "yes" else "passed" for row in rows]
    words = [text.split()[0] for _, text in page.all("p", **{"class": "verdict"})]  # the verdict is a word too
    assert words == verdicts
    flagged = verdicts.count("flagged")
    buttons = [text for attrs, text in page.all("button") if "value" in attrs]
    assert buttons == ["All 7", f"Flagged {flagged}", f"Passed {7 - flagged}"]
    assert f"Images flagged: {flagged} of 7" in page.all("p", **{"class": "lead"})[0][1]
    assert [text for _, text in page.all("dt")] == ["Run", "Seed"]
    assert [text for _, text in page.all("dd")] == ["runs/bottle", "0"]
    assert len(page.all("line", **{"class": "threshold"})) == 7 + 1
    assert len(page.all("circle")) == 7


def test_a_page_of_some_images_counts_all(tmp_path):
    given = example(n=2)
    scores = [3.0, 2.0, 1.0, 0.0]
    cards = [
        card(given["paths"][i], given["images"][i], given["maps"][i], (20, 10), score, 0.9)
        for i, score in enumerate((3.0, 0.0))
    ]
    page = Page(write_page(tmp_path, cards, scores, 0.5, "Some", {}).read_text(encoding="utf-8"))
    assert "Images flagged: 3 of 4" in page.all("p", **{"class": "lead"})[0][1]
    assert [text for attrs, text in page.all("button") if "value" in attrs] == ["All 2", "Flagged 1", "Passed 1"]
    assert [float(attrs["data-score"]) for attrs, _ in page.all("line") if "data-score" in attrs] == scores


@pytest.mark.parametrize(
    ("size", "in_folder", "in_page"),
    [
        ((900, 600), (900, 600), (320, 213)),
        ((32, 32), (32, 32), (32, 32)),
        ((2048, 1024), (1024, 512), (320, 160)),
        ((10, 30000), (1, 1024), (1, 320)),
        ((1, 1), (1, 1), (1, 1)),
    ],
)
def test_pictures_have_the_original_aspect_within_the_bounds(tmp_path, size, in_folder, in_page):
    write_report(tmp_path, **example(n=1) | {"sizes": [size]})
    rows, page = read(tmp_path)
    with Image.open(tmp_path / rows[0]["map"]) as file:
        file.load()
        assert (file.format, file.size) == ("PNG", in_folder)
    for attrs, _ in page.all("img")[1:]:
        assert picture(attrs["src"]).format == "JPEG"
        assert picture(attrs["src"]).size == (int(attrs["width"]), int(attrs["height"])) == in_page


def test_same_names_in_different_folders_get_different_maps(tmp_path):
    paths = [Path("a/000.png"), Path("b/000.png"), Path("B/000.PNG")]
    maps = torch.stack([torch.full((8, 8), value) for value in (0.2, 0.4, 0.6)])
    write_report(tmp_path, **example() | {"paths": paths, "maps": maps})
    rows, _ = read(tmp_path)
    assert len({row["map"].lower() for row in rows}) == 3
    for row in rows:  # and each row names its own
        value = np.asarray(Image.open(tmp_path / row["map"])).max() / 255
        assert value == pytest.approx(float(row["map_max"]), abs=1 / 255)


def test_nasty_names_titles_and_notes_stay_text(tmp_path):
    write_report(tmp_path / "plain", **example(len(NASTY)))
    paths = [Path(name) if name[0] == "=" else Path("dir", name) for name in NASTY]
    title = "</title><script>1</script> $n \udcff"
    notes = {"<i>Run</i>": '"><svg onload=alert(1)>', "\udcfe": "\u202e$x"}
    write_report(tmp_path / "nasty", **example(len(NASTY)) | {"paths": paths, "title": title, "notes": notes})
    rows, page = read(tmp_path / "nasty")
    plain = [str(path).encode(errors="backslashreplace").decode() for path in paths]
    assert {row["file"] for row in rows} == {f"./{name}" if name[0] == "=" else name for name in plain}

    shown = page.all("h2")
    assert {attrs["title"] for attrs, _ in shown} == {name.replace("\r\n", "\n") for name in plain}
    assert all(text == "/".join(attrs["title"].split("/")[-2:]) for attrs, text in shown)
    assert page.all("title")[0][1] == page.all("h1")[0][1] == title.replace("\udcff", "\\udcff")
    assert [text for _, text in page.all("dt")] == ["<i>Run</i>", "\\udcfe"]
    assert [text for _, text in page.all("dd")] == ['"><svg onload=alert(1)>', "\u202e$x"]
    _, plain_page = read(tmp_path / "plain")
    assert [(tag, set(attrs)) for tag, attrs, _ in page.elements] == [
        (tag, set(attrs)) for tag, attrs, _ in plain_page.elements
    ]
    assert not [key for _, attrs, _ in page.elements for key in attrs if key.startswith("on") or key == "style"]

    out = tmp_path / "nasty"
    files = sorted(path.name for path in (out / "maps").iterdir())
    assert files == sorted(Path(row["map"]).name for row in rows)
    assert all(re.fullmatch(r"[0-9]{4}-[A-Za-z0-9_-]*\.png", name) for name in files)
    assert sorted(path.name for path in out.iterdir()) == ["maps", "report.html", "scores.csv"]


def test_page_stands_alone_and_its_policy_fits_its_parts(tmp_path):
    write_report(tmp_path, **example())
    _, page = read(tmp_path)
    assert page.open == []
    assert page.elements[0][:2] == ("html", {"lang": "en"})
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    for tag in ("style", "script"):
        [(_, text)] = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"].strip() == f"'sha256-{digest}'"
        assert "url(" not in text
        assert "@import" not in text
    for tag, attrs, _ in page.elements:
        assert all(attrs[key].startswith("data:") for key in ("src", "href") if key in attrs), tag
    assert not re.search(r"https?:|//[a-z]", re.sub(r'"data:[^"]*"', "", (tmp_path / "report.html").read_text()))


def test_page_can_be_read_without_eyes_mouse_or_script(tmp_path):
    write_report(tmp_path, **example())
    _, page = read(tmp_path)
    alts = [attrs["alt"] for attrs, _ in page.all("img")]
    assert len(alts) == len(set(alts)) == 1 + 2 * 3
    assert all(alts)
    [(group, _)] = page.all("div", role="group")
    assert "hidden" in group  # until the script, without which the buttons would do nothing, shows them
    assert [attrs["aria-pressed"] for attrs, _ in page.all("button") if "value" in attrs] == ["true", "false", "false"]
    assert page.all("svg", role="img")[0][0]["aria-label"]


def test_equal_scores_one_image_and_bfloat_maps_are_fine(tmp_path):
    given = example(n=1) | {"scores": torch.tensor([0.1], dtype=torch.float64), "notes": {}}
    write_report(tmp_path, **given | {"maps": given["maps"].bfloat16()})
    rows, page = read(tmp_path)
    assert rows[0]["anomalous"] == "no"
    assert "nan" not in "".join(text for _, text in page.all("body")).lower()


def test_writing_again_replaces_the_files_and_leaves_the_same_bytes(tmp_path):
    def contents():
        return {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    write_report(tmp_path, **example(seed=1))
    before = contents()
    write_report(tmp_path, **example(seed=2))
    assert before.keys() == contents().keys()
    assert before != contents()
    write_report(tmp_path, **example(seed=1))
    assert before == contents()


def test_heat_map_has_one_scale_and_keeps_the_values():
    colours = matplotlib.colormaps["inferno"]
    for value in (0.0, 0.25, 0.5, 1.0):
        constant = heat_map(torch.full((4, 4), value), size=(7, 3))
        level = round(255 * value)
        assert constant.size == (7, 3)
        assert (np.asarray(constant) == level).all()
        assert constant.convert("RGB").getpixel((0, 0)) == colours(level, bytes=True)[:3]
    values = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    assert np.abs(np.asarray(heat_map(values)) / 255 - values.numpy()).max() <= 0.5 / 255 + 1e-6


def test_overlay_shows_the_image_where_normal_and_the_map_where_anomalous():
    image = torch.randint(256, (3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
    zero, one = torch.zeros(6, 6), torch.ones(6, 6)
    assert heat_overlay(image, zero).tobytes() == grey.convert("RGB").tobytes()
    assert heat_overlay(image, one).tobytes() == heat_map(one).convert("RGB").tobytes()
    assert heat_overlay(image, one / 2, size=(9, 4)).size == (9, 4)
