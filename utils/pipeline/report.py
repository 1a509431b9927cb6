"""Write the HTML report of a run: one page per executed notebook, and an index page with the leaderboard.

The pages need no network: styles (report.css) and images are embedded. Browsers run no script in them and load nothing,
whatever the names in the data hold; each page forbids it in its first lines.
"""

import base64
import html
import io
import os
import time
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from utils.data.records import Analysis, Ensemble, read_record
from utils.files import read_json, shown, write_text
from utils.pipeline.leaderboard import as_html, left_out, read_leaderboard
from utils.pipeline.steps import ROWS

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
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
    names = sorted(row.notebook for row in ROWS)
    found = [path for name in names for path in sorted((run / name).rglob(f"{name}.ipynb"))]
    notebooks = {path.parent.relative_to(run).as_posix(): path for path in found}
    pages = {name: folder / f"{name.replace('/', '-')}.html" for name in notebooks}
    for name, path in notebooks.items():
        if not pages[name].exists() or pages[name].stat().st_mtime < path.stat().st_mtime:
            try:
                page = notebook_page(path, name)
            except Exception as error:  # a broken notebook must not cost the report
                page = _page(name, f"<p>{html.escape(f'{shown(path)} can not be shown: {error!r}')}</p>")
            write_text(pages[name], page)
    for stale in set(folder.glob("*.html")) - set(pages.values()) - {folder / "index.html"}:
        stale.unlink()
    cards = "".join(_card(run, name, pages[name].name, notebooks[name]) for name in notebooks)
    body = [f"<h1>{html.escape(run.name)}</h1>", _about(run), "<h2>Leaderboard</h2>", _leaderboard(run), _analysis(run)]
    body += ["<h2>Notebooks</h2>", f'<div class="cards">{cards}</div>']
    write_text(folder / "index.html", _page(run.name, "\n".join(body)))
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
    colours = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    return _page(name, f'<p class="top">{back}{code}</p>\n{body}', colours)


def _page(title: str, body: str, style: str = "") -> str:
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8") + style
    return PAGE.format(title=html.escape(title), style=style, body=body)


def _about(run: Path) -> str:
    """Data, folds and submission of the run, when and where it was made."""
    about = read_json(run / "run.json")
    parts = [f"data {about['data_dir']}", f"folds {', '.join(map(str, about['folds']))}"]
    parts += [f"submission {about['submission']}"] if about["submission"] else []
    parts += left_out(run)
    parts += [time.strftime("written %Y-%m-%d %H:%M"), f"{os.cpu_count()} CPU cores"]
    return f"<p>{html.escape(' · '.join(parts))}</p>"


def _leaderboard(run: Path) -> str:
    """The leaderboard as an HTML table; if there is an ensemble, its row is first and highlighted."""
    table = read_leaderboard(run)
    if table.empty:
        return "<p>No step has ended yet.</p>"
    missing = read_record(run / Ensemble.notebook, Ensemble, empty=True).missing
    partial = "".join(f"<li>{html.escape(f'{name}: {reason}')}</li>" for name, reason in missing.items())
    partial = f'<p class="failed">The submission is PARTIAL. It lacks</p><ul>{partial}</ul>' if missing else ""
    return f'{partial}<div class="leaderboard {table["kind"][0]}">{as_html(table)}</div>'


def _analysis(run: Path) -> str:
    """The scores with their intervals and the verdicts of notebook 07; "" before it has ended."""
    found = read_record(run / Analysis.notebook, Analysis, empty=True)
    if not found.result:
        return ""
    scores = pd.read_csv(found.folder / "scores.csv").rename(columns={"on": "", "low": "95 % from", "high": "to"})
    align = ["left"] + ["right"] * (len(scores.columns) - 1)
    table = tabulate(scores, "keys", "html", showindex=False, floatfmt=".4f", missingval="", colalign=align)
    verdicts = "".join(f"<li>{html.escape(text)}</li>" for text in found.verdicts)
    title = f"<h2>Out-of-fold Dice of {html.escape(found.result)}</h2>"
    return f'{title}<div class="leaderboard">{table}</div><p>{html.escape(found.weighting)}</p><ul>{verdicts}</ul>'


def _card(run: Path, name: str, page: str, notebook: Path) -> str:
    """The link to a notebook's page, with a picture, its title and its state."""
    record = read_record(run / name)
    state = "not finished" if record is None else "done" if record.minutes is None else f"{record.minutes:.1f} min"
    state = '<span class="failed">failed</span>' if (run / name / "failed.txt").exists() else state
    try:
        picture = _thumbnail(notebook)
    except Exception:  # its page says what is broken
        picture = ""
    image = f'<img alt="" src="data:image/jpeg;base64,{picture}">' if picture else '<div class="none"></div>'
    title = html.escape(name.replace("/", " "))
    return f'<a class="card" href="{html.escape(page)}">{image}<p>{title}<br><small>{state}</small></p></a>'


def _thumbnail(notebook: Path, width: int = 460) -> str:
    """The image with the most bytes in a notebook's outputs, or else in its folder, as a small base64 JPEG; "" if none.

    That is a radiograph rather than a chart, which could not be read at this size.
    """
    from PIL import Image

    outputs = [output for cell in read_json(notebook)["cells"] for output in cell.get("outputs", [])]
    embedded = ["".join(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    pictures = [base64.b64decode(text) for text in embedded] or [p.read_bytes() for p in notebook.parent.glob("*.png")]
    if not pictures:
        return ""
    with Image.open(io.BytesIO(max(pictures, key=len))) as image:
        small = image.convert("RGBA")
    small.thumbnail((width, 4 * width))
    page = Image.new("RGB", small.size, "white")
    page.paste(small, mask=small.getchannel("A"))
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()
