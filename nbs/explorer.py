"""A figure under sliders and buttons, for the pages: `from explorer import Explorer`."""

import base64
import inspect
import io
import time

import ipywidgets
import matplotlib as mpl

INK = "#222222"
STYLE = {
    "font.size": 8,
    **dict.fromkeys(["axes.titlesize", "axes.labelsize"], 8),
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 7),
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor"], INK),
    **dict.fromkeys(["legend.frameon", "axes.spines.top", "axes.spines.right"], False),
    "axes.linewidth": 0.6,
    "image.interpolation": "nearest",  # a bitmap is shown pixel by pixel
}
QUICK = 0.2  # seconds: a slower picture waits until the mouse lets the slider go


def make_control(name, choices, start):
    "Buttons for a list of choices; a slider for (first, last) or (first, last, step)."
    if not isinstance(choices, list):
        control = ipywidgets.interactive.widget_from_abbrev(choices, start)
    else:  # not a menu, whose arrow keys JupyterLab takes for itself
        control = ipywidgets.ToggleButtons(options=choices, value=start)
        control.style.button_width = "auto"
        control.layout = dict(  # the name stands beside its buttons, as beside a slider
            display="grid",
            grid_template_columns="max-content auto",
            grid_gap="4px",
            align_items="center",
            height="auto",
        )
    control.description = name.replace("_", " ")
    control.style.description_width = "initial"
    return control


class Explorer:
    "A figure under controls: live in Jupyter; where no kernel runs, its first picture."

    def __init__(
        self,
        draw,  # (**values) -> matplotlib figure; its defaults are where the controls start
        alt: str,  # the figure in words, for who cannot see it
        **controls,  # argument of `draw` -> (first, last), (first, last, step) or [choice, ...]
    ):
        self.draw, self.alt = draw, alt
        arguments = inspect.signature(draw).parameters
        self.controls = {
            name: make_control(name, choices, arguments[name].default)
            for name, choices in controls.items()
        }
        self.errors = ipywidgets.Output()
        self.picture = ipywidgets.Image(format="png")
        self.picture.layout = dict(max_width="100%", align_self="flex-start")
        began = time.perf_counter()
        self.update()
        quick = time.perf_counter() - began < QUICK
        self.still = self.picture.value
        for control in self.controls.values():
            if hasattr(control, "continuous_update"):
                control.continuous_update = quick
            control.observe(self._moved, "value")
        above = ipywidgets.HBox(list(self.controls.values()))
        above.layout = dict(flex_flow="row wrap", grid_gap="0 16px")
        self.panel = ipywidgets.VBox([above, self.picture, self.errors])

    def update(self):
        "Draw the figure at the values that the controls have now."
        values = {name: control.value for name, control in self.controls.items()}
        with mpl.rc_context(STYLE), io.BytesIO() as file:
            self.draw(**values).savefig(file, format="png", dpi=100)
            self.picture.value = file.getvalue()

    def _moved(self, change):
        "Draw again; an error is shown under the picture."
        self.errors.clear_output()
        with self.errors:
            self.update()

    def _repr_mimebundle_(self, **kwargs):
        "The live panel and the first picture, of which a page shows one."
        live = self.panel._repr_mimebundle_(**kwargs)
        still = base64.b64encode(self.still).decode()
        return (
            live | {"text/plain": self.alt, "image/png": still},
            {"image/png": dict(alt=self.alt)},
        )
