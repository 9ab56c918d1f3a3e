"""Sphinx extension for the pages: what they load and when, and links to the middle of a page."""

import re
from functools import partial

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

VIEW, STILL = "application/vnd.jupyter.widget-view+json", "image/png"


class Stills(SphinxPostTransform):
    """Let pictures load late; put the picture of an output that is a widget too before the widget.

    book.css hides it once the widget is shown.
    """

    default_priority = 3  # before MyST-NB keeps one of an output's forms, the widget, and drops the others
    formats = ("html",)

    def run(self, **_: object) -> None:
        for picture in self.document.findall(nodes.image):
            picture["loading"] = "lazy"
        for bundle in self.document.findall(nodes.container):
            if bundle.get("nb_element") == "mime_bundle":
                forms = {form["mime_type"]: form for form in bundle.children}
                if forms.keys() >= {VIEW, STILL}:
                    for picture in forms[STILL].findall(nodes.image):
                        still = picture.deepcopy()
                        still["classes"].append("still")
                        forms[VIEW].insert(0, still)


class FigureNumbers(SphinxPostTransform):
    """Number the pictures of a chapter, its outputs' and its own, "Fig. 4.2": each can be cited, and linked to."""

    default_priority = 2  # before the forms of an output are chosen among
    formats = ("html",)

    def run(self, **_: object) -> None:
        if not self.env.docname.startswith("notebooks/"):
            return
        chapter = self.env.toc_secnumbers.get(self.env.docname, {}).get("", ())
        for n, holder in enumerate([*self.document.findall(self.holds_a_picture)], 1):
            number = ".".join(map(str, (*chapter[:1], n)))
            link = nodes.reference("", f"Fig. {number}", refuri=f"#fig-{n}", internal=True)
            note = nodes.paragraph("", "", link, classes=["figure-number"], ids=[f"fig-{n}"])
            holder.parent.insert(holder.parent.index(holder) + 1, note)

    @staticmethod
    def holds_a_picture(node: nodes.Node) -> bool:
        """Whether a node is a paragraph that is a picture, or an output that is one and no widget."""
        if isinstance(node, nodes.paragraph):
            return len(node) == 1 and isinstance(node[0], nodes.image)
        if isinstance(node, nodes.container) and node.get("nb_element") == "mime_bundle":
            forms = {form["mime_type"] for form in node.children}
            return STILL in forms and VIEW not in forms
        return False


def lighter(head: str, body: str) -> str:
    """Leave scripts out of a page's head that its body has no use for: half of what it would load.

    The theme draws its icons by a font, and brings a script that would draw them again; beside widgets it is needed,
    since these bring an older such font. Sphinx brings MathJax to the first page because its chapters have formulas.
    """
    needs = {"fontawesome": "widget-view+json", "mathjax/": 'class="math'}
    for script, need in needs.items():
        if need not in body:
            head = re.sub(rf'<script[^>]*src="[^"]*{script}[^"]*"[^>]*></script>\n?', "", head)
    return head


def give_lighter(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """Hand the template `lighter`, for this page."""
    context["lighter"] = partial(lighter, body=context.get("body", ""))


def name_spans(app: Sphinx, doctree: nodes.document) -> None:
    """Let pages link to `[D1]{#d1}` as they do to headings, `page.md#d1`: MyST looks for headings only."""
    names = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for span in doctree.findall(nodes.inline):
        names.update((name, (span.line or 0, name, span.astext())) for name in span["ids"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(FigureNumbers)
    app.add_post_transform(Stills)
    app.connect("doctree-read", name_spans)
    app.connect("html-page-context", give_lighter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
