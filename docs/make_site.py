"""The site: `python docs/make_site.py` lays out the pages, builds them, and checks every link.

Pages are the notebooks as they are stored, README, and an API page for each module. Equations
become MathML when the site is built, so that a browser shows them without a network.
"""

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from latex2mathml.converter import convert

root = Path(__file__).resolve().parent.parent
pages, site = root / "_docs" / "pages", root / "_docs" / "site"
TOP = ["DATA_CARD.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "Snakefile"]
NUMBERED = sorted((root / "nbs").glob("[0-9]*_*.ipynb"))
MODULES = [p.stem.split("_", 1)[1] for p in NUMBERED]
STEPS = sorted((root / "nbs" / "experiments").glob("*.ipynb"))


# laying out -------------------------------------------------------------------------------------
DIRECTIVE = re.compile(r"^#\| *(\w+)(.*)$\n?", re.M)


def without_directives(notebook: dict) -> dict:
    "A notebook as a reader wants it: without nbdev's comments, and cells that are only those."
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        found = dict(DIRECTIVE.findall(source)) if cell["cell_type"] == "code" else {}
        if {"default_exp", "hide"} & set(found):
            continue
        cell["source"] = DIRECTIVE.sub("", source) if found else source
        if "echo" in found:
            cell["metadata"]["tags"] = ["only_output"]
        cells.append(cell)
    return notebook | dict(cells=cells)


def lay_out():
    "Write the pages of the site to `_docs/pages`, as the repository has them."
    shutil.rmtree(pages, ignore_errors=True)
    kept = shutil.ignore_patterns("*.svg", "__pycache__", "*.py", ".*", "smoke")
    for folder in ("nbs", "figures", "tests/reference"):
        shutil.copytree(root / folder, pages / folder, ignore=kept)
    for page in (pages / "nbs").rglob("*.ipynb"):
        notebook = without_directives(json.loads(page.read_text(encoding="utf-8")))
        page.write_text(json.dumps(notebook), encoding="utf-8")
    shutil.copy(root / "docs" / "site.css", pages / "site.css")
    for name in TOP:
        shutil.copy(root / name, pages / name)
    shutil.copy(root / "README.md", pages / "index.md")
    listed = "\n".join(f"* [{p.name}]({p.name})" for p in STEPS)
    (pages / "nbs" / "experiments" / "index.md").write_text(
        f"# The steps of a run\n\n{listed}\n"
    )
    (pages / "api").mkdir()
    for name in MODULES:
        (pages / "api" / f"{name}.md").write_text(f"# {name}\n\n::: mfmda.{name}\n")


def title(page: Path) -> str:
    "The heading of a notebook."
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return re.search(r"^# (.+)$", "".join(cells[0]["source"]), re.M).group(1)


def navigation() -> list:
    "Pages in reading order, then those about results, the steps, and the API."

    def entries(notebooks):
        return [{title(p): p.relative_to(root).as_posix()} for p in notebooks]

    rooms, nbs = {}, root / "nbs"
    for name, entry in zip(MODULES, entries(NUMBERED)):
        rooms.setdefault(name.split(".")[0], []).append(entry)
    others = ["results", "recipe", "paper_vs_code", "install", "extend", "glossary"]
    about = [nbs / f"{name}.ipynb" for name in others] + sorted(nbs.glob("demo_*.ipynb"))
    api = [{name: f"api/{name}.md"} for name in MODULES]
    steps = [{"All steps": "nbs/experiments/index.md"}, *entries(STEPS)]
    last = {"About": entries(about), "Steps": steps, "API": api}
    return [{"Home": "index.md"}, *({name: some} for name, some in (rooms | last).items())]


# hooks of mkdocs --------------------------------------------------------------------------------
def on_config(config):
    config["nav"] = navigation()
    return config


INDEX = (root / "mfmda" / "_modidx.py").read_text(encoding="utf-8")
NAME = re.compile(r"<code>((\w+\.\w+)\.\w+)</code>")


def _to_api(found, above):
    "`stage1.ddpm.q_sample` as a link to its place in the API."
    name, module = found.groups()
    if f"'mfmda.{name}'" not in INDEX:
        return found.group()
    return f'<a href="{above}api/{module}.html#mfmda.{name}">{found.group()}</a>'


KEPT = "|".join(rf"<{tag}\b.*?</{tag}>" for tag in ("pre", "code", "script", "style", "svg"))
NOT_TEXT = re.compile(rf"({KEPT}|<[^>]*>)", re.S)
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.S)


def _mathml(found):
    display, inline = found.groups()
    latex = html.unescape(display or inline)
    return convert(latex, display="block" if display else "inline")


HEADING = re.compile(r'<h[1-6][^>]*\bid="([^"]+)"')


def _entries(toc):
    "The entries of a table of contents, from top to bottom."
    for entry in toc:
        yield entry
        yield from _entries(entry.children)


LINK = re.compile(r'href="((?!https?:)[^"#]*?)(\.ipynb|\.md|(?=#))(#[^"]*)?"')


def _to_page(found):
    "A link to a notebook or text, as one to its page; anchors of headings as pages write them."
    path, suffix, anchor = found.groups(default="")
    anchor = re.sub(r"[^\w#-]", "", anchor.lower()) if "-" in anchor else anchor
    return f'href="{path}{".html" if suffix else ""}{anchor}"'


def on_page_content(content, page, config, files):
    "Equations as MathML; links to notebooks lead to their pages, and so does the contents' list."
    parts = NOT_TEXT.split(content)
    content = "".join(p if k % 2 else MATH.sub(_mathml, p) for k, p in enumerate(parts))
    above = "../" * page.url.count("/")
    content = NAME.sub(lambda found: _to_api(found, above), content)
    entries, ids = list(_entries(page.toc)), HEADING.findall(content)
    ids = ids[len(ids) - len(entries) :]  # the list may leave out the title
    for entry, name in zip(entries, ids):
        entry.id = name
    return LINK.sub(_to_page, content)


# every link -------------------------------------------------------------------------------------
class Links(HTMLParser):
    "What a page links to, and where it can be linked to."

    def __init__(self):
        super().__init__()
        self.out, self.anchors = [], {""}

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.out.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def dead_links() -> list[str]:
    "Links of the site that lead nowhere in it; those to other servers are not followed."
    found = {}
    for page in set(site.rglob("*.html")) - {site / "404.html"}:
        found[page] = Links()
        found[page].feed(page.read_text(encoding="utf-8"))
    dead = []
    for page, links in found.items():
        for link in links.out:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                dead.append(f"{page.relative_to(site)}: {link}")
            elif target in found and unquote(parts.fragment) not in found[target].anchors:
                dead.append(f"{page.relative_to(site)}: {link} (no such place on the page)")
    return dead


def main():
    lay_out()
    build = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", "docs/mkdocs.yml"]
    subprocess.run(build, cwd=root, check=True)
    if dead := dead_links():
        sys.exit("\n".join(["dead links:", *dead]))
    print(
        f"{len(list(site.rglob('*.html')))} pages in {site.relative_to(root)}, no link is dead"
    )


if __name__ == "__main__":
    main()
