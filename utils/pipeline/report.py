"""The HTML report of a run: one page per executed notebook, and an index page with the leaderboard.

The pages need no network: styles and images are embedded.
"""

import base64
import html
import io
import os
import time
from pathlib import Path
from typing import Any

from utils.files import read_json, write_text
from utils.pipeline.leaderboard import displayed, read_leaderboard
from utils.pipeline.profile import NOTEBOOKS

STYLE = """
:root { color-scheme: light; --line: #dde3ea; --ink: #1d2733; --soft: #5b6b7c; --accent: #0b66a8; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #f4f6f9; font: 16px/1.6 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; background: #fff; min-height: 100vh; }
h1 { font-size: 2rem; line-height: 1.25; margin: 0 0 1rem; } h2 { margin-top: 2.4rem; } a { color: var(--accent); }
.anchor-link { display: none; }
table { border-collapse: collapse; font-size: .92rem; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
.text { text-align: left; } tr.ensemble { background: #e9f3fb; font-weight: 600; }
pre { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-x: auto; }
.highlight pre { background: #f7f9fb; border-left: 3px solid var(--line); padding: .8rem 1rem; margin: 1rem 0 .4rem; }
.output_area { overflow-x: auto; } .output_area pre { margin: .1rem 0; padding: 0 1rem; color: #37475a; }
.output_stderr pre { background: #fdf3e7; } .output_png { text-align: center; }
.ansi-red-fg { color: #b3261e; } .ansi-green-fg { color: #1b7f3b; } .ansi-cyan-fg, .ansi-blue-fg { color: #0b66a8; }
.top { display: flex; justify-content: space-between; color: var(--soft); }
body:not(:has(#code:checked)) .input { display: none; }
img { max-width: 100%; height: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1.1rem; }
.card { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; text-decoration: none; color: inherit; }
.card:hover { border-color: var(--accent); } .card p { margin: .7rem .9rem; } .card small { color: var(--soft); }
.card img { width: 100%; aspect-ratio: 16/10; object-fit: cover; object-position: top left; display: block; }
.card .none { aspect-ratio: 16/10; background: #e8edf3; } .failed { color: #b3261e; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main>
{body}
</main></body></html>
"""


def write_report(run: str | Path) -> Path:
    """Write `<run>/report/`: index.html and one page per executed notebook; returns the path of index.html.

    Pages that are newer than their notebook are kept.
    """
    run = Path(run)
    folder = run / "report"
    notebooks = _executed(run)
    pages = {name: folder / f"{name.replace('/', '-')}.html" for name in notebooks}
    for name, path in notebooks.items():
        if not pages[name].exists() or pages[name].stat().st_mtime < path.stat().st_mtime:
            write_text(pages[name], notebook_page(path, name))
    for stale in set(folder.glob("*.html")) - set(pages.values()) - {folder / "index.html"}:
        stale.unlink()
    cards = [_card(run, name, pages[name].name, notebooks[name]) for name in notebooks]
    body = [f"<h1>{html.escape(run.name)}</h1>", _about(run), "<h2>Leaderboard</h2>", _table(run)]
    body += ["<h2>Notebooks</h2>", f'<div class="cards">{"".join(cards)}</div>']
    write_text(folder / "index.html", PAGE.format(title=html.escape(run.name), style=STYLE, body="\n".join(body)))
    return folder / "index.html"


def notebook_page(path: Path, name: str) -> str:
    """One executed notebook as an HTML page, without input prompts; `name` is its title."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    exporter = HTMLExporter(template_name="basic", embed_images=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    body, _ = exporter.from_filename(str(path))
    back = f'<span><a href="index.html">← report</a> · {html.escape(name)}</span>'
    code = '<label><input type="checkbox" id="code"> show the code</label>'
    style = STYLE + HtmlFormatter(style="friendly").get_style_defs(".highlight")
    return PAGE.format(title=html.escape(name), style=style, body=f'<p class="top">{back}{code}</p>\n{body}')


def _executed(run: Path) -> dict[str, Path]:
    """The executed notebooks by step, in the order of their numbers."""
    found = {}
    for number in NOTEBOOKS.values():
        for path in sorted((run / number).rglob(f"{number}.ipynb")):
            found[path.parent.relative_to(run).as_posix()] = path
    return found


def _about(run: Path) -> str:
    about: dict[str, Any] = read_json(run / "run.json") if (run / "run.json").exists() else {}
    parts = [f"data {about['data_dir']}"] if "data_dir" in about else []
    parts += [f"folds {', '.join(map(str, about['folds']))}"] if about.get("folds") else []
    parts += [f"submission {about['submission']}"] if about.get("submission") else []
    parts += [time.strftime("written %Y-%m-%d %H:%M"), f"{os.cpu_count()} CPU cores"]
    return f"<p>{html.escape(' · '.join(parts))}</p>"


def _table(run: Path) -> str:
    table = read_leaderboard(run)
    if table.empty:
        return "<p>No step has ended yet.</p>"
    shown = displayed(table)
    kinds = [' class="text"' if c in ("", "model") else "" for c in shown]

    def cells(tag: str, texts: Any) -> str:
        return "".join(f"<{tag}{k}>{html.escape(t)}</{tag}>" for k, t in zip(kinds, texts, strict=True))

    rows = [f'<tr class="{row[0]}">{cells("td", row)}</tr>' for row in shown.itertuples(index=False, name=None)]
    return f"<table><tr>{cells('th', shown.columns)}</tr>{''.join(rows)}</table>"


def _card(run: Path, name: str, page: str, notebook: Path) -> str:
    metrics = run / name / "metrics.json"
    minutes = read_json(metrics).get("minutes") if metrics.exists() else None
    state = f"{minutes:.1f} min" if minutes is not None else "done" if metrics.exists() else "not finished"
    state = '<span class="failed">failed</span>' if (run / name / "failed.txt").exists() else state
    picture = _thumbnail(notebook)
    image = f'<img alt="" src="data:image/jpeg;base64,{picture}">' if picture else '<div class="none"></div>'
    title = html.escape(name.replace("/", " "))
    return f'<a class="card" href="{html.escape(page)}">{image}<p>{title}<br><small>{state}</small></p></a>'


def _thumbnail(notebook: Path, width: int = 460) -> str:
    """The image with the most bytes in a notebook's outputs, or else in its folder, as a small base64 JPEG; "" if none.

    Radiographs take more bytes than charts, of which a small crop shows nothing.
    """
    from PIL import Image

    outputs = [o for cell in read_json(notebook)["cells"] for o in cell.get("outputs", [])]
    embedded = ["".join(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    beside = list(notebook.parent.glob("*.png"))
    if embedded:
        source: Any = io.BytesIO(base64.b64decode(max(embedded, key=len)))
    elif beside:
        source = max(beside, key=lambda path: path.stat().st_size)
    else:
        return ""
    with Image.open(source) as image:
        small = image.convert("RGBA")
        small.thumbnail((width, 4 * width))
        page = Image.new("RGB", small.size, "white")
        page.paste(small, mask=small.getchannel("A"))
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()
