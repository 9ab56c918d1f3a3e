"""Sphinx extension for pictures: they load late, and a widget's stands in its place until the widget is there."""

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


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(Stills)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
