"""What a test can ask of a figure, for the pages."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from mfmda.study.figures import style


def overlapping_texts(fig: Figure) -> list:
    "Pairs of texts whose boxes overlap, and texts that leave the figure."
    with style():
        renderer = FigureCanvasAgg(fig).get_renderer()
        fig.draw(renderer)
        hidden = undrawn(fig)
        texts = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]
        boxes = [
            (t.get_text(), t.get_window_extent(renderer)) for t in texts if t not in hidden
        ]
    outside = [(words, "leaves the figure") for words, box in boxes if leaves(box, fig.bbox)]
    crowded = [(a, b) for (a, p), (b, q) in combinations(boxes, 2) if crossing(p, q)]
    return outside + crowded


def undrawn(fig):
    "Labels that matplotlib keeps, but does not draw: of ticks out of view, of axes switched off."
    found = set()
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not ax.axison or not low <= tick.get_loc() <= high:
                    found |= {tick.label1, tick.label2}
    return found


def leaves(box, page):
    "Whether a box lies more than a pixel outside the page."
    return min(box.x0, box.y0) < -1 or box.x1 > page.width + 1 or box.y1 > page.height + 1


def crossing(p, q):
    "Whether two boxes share more than a pixel in both directions."
    wide = min(p.x1, q.x1) - max(p.x0, q.x0)
    high = min(p.y1, q.y1) - max(p.y0, q.y0)
    return wide > 1 and high > 1
