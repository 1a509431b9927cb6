"""Names made of HTML do no harm in the report, and nothing asks the network; both seen in real runs of notebooks."""

import shutil
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest

from tests.execute import execute_all
from tests.notebooks import QUICK, outputs
from utils.data.competition import HAND_BONES, read_index
from utils.files import read_json, write_json, write_text
from utils.pipeline.leaderboard import show_leaderboard
from utils.pipeline.report import write_report

EVIL = "<img src=x onerror=alert(1)><script>alert(2)<script>"


@pytest.fixture(scope="module")
def evil_run(sample, tmp_path_factory):
    """A run's folder on data whose classes, images, people and metadata have names made of HTML; 01 and 03 were run."""
    folder = tmp_path_factory.mktemp("data") / "<b onclick=alert(3)>"
    shutil.copytree(sample, folder)
    (folder / "solution.csv").unlink()
    (folder / "classes.txt").write_text("\n".join(HAND_BONES).replace("Lunate", EVIL))
    for annotation in (folder / "train/outputs_json").glob("*/*.json"):
        annotation.write_text(annotation.read_text().replace('"Lunate"', f'"{EVIL}"'))
    train = read_index(folder, splits=("train",))
    for row in train.iloc[::2].itertuples():
        image = folder / "train/DCM" / row.ID / row.image_name
        image.rename(image.with_name(f"{EVIL}{image.name}"))
        annotation = folder / "train/outputs_json" / row.ID / f"{image.stem}.json"
        annotation.rename(annotation.with_name(f"{EVIL}{annotation.name}"))
    for kind in ("DCM", "outputs_json"):
        (folder / "train" / kind / train["ID"][0]).rename(folder / "train" / kind / EVIL)
    metadata = pd.read_excel(folder / "meta_data.xlsx")
    metadata.loc[0, ["ID", "성별"]] = EVIL, EVIL
    metadata.to_excel(folder / "meta_data.xlsx", index=False)
    output = tmp_path_factory.mktemp("outputs") / "<i onclick=alert(4)>"
    common = {"data_dir": folder, "output_dir": output, "n_folds": 3}
    trained = output / "03_train/thin/fold0/03_train.ipynb"
    steps = [("01_eda", output / "01_eda/01_eda.ipynb", common | {"examples": 2})]
    steps += [("03_train", trained, common | QUICK | {"fold": 0, "model": "thin"})]
    assert execute_all(steps, tmp_path_factory.mktemp("steps")) == ["", ""]
    write_json(output / "run.json", {"data_dir": str(folder), "folds": [0], "submission": f"{EVIL}.csv"})
    metrics = read_json(output / "03_train/thin/fold0/metrics.json")
    write_json(output / "03_train" / EVIL / "fold1/metrics.json", metrics | {"model": EVIL})
    write_text(output / "03_train/thin/fold0/failed.txt", EVIL)
    return output


class Page(HTMLParser):
    """Notes what a browser could run or load: elements, event attributes, addresses."""

    def __init__(self, text):
        super().__init__()
        self.active, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        events = [name for name, _ in attributes if name.startswith("on")]
        addresses = [value for name, value in attributes if name in ("src", "href", "action", "data") and value]
        loading = [a for a in addresses if not a.startswith(("data:image/", "#")) and not a.endswith(".html")]
        if tag in ("script", "iframe", "object", "embed", "form", "base", "link") or events or loading:
            self.active.append((tag, attributes))

    def handle_data(self, data):
        self.text += data


def test_names_made_of_html_do_no_harm_in_the_report(evil_run):
    pages = sorted(write_report(evil_run).parent.glob("*.html"))
    assert [page.name for page in pages] == ["01_eda.html", "03_train-thin-fold0.html", "index.html"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        parsed = Page(text)
        assert parsed.active == []
        assert EVIL in parsed.text or page.name.startswith("03"), "the name is there, as text"  # 03 only draws it
        policy = text.partition("Content-Security-Policy")[2].partition(">")[0]
        assert "default-src 'none'" in policy and "script-src" not in policy
    assert EVIL in outputs(evil_run / "01_eda/01_eda.ipynb")
    assert EVIL in show_leaderboard(evil_run)


def test_no_notebook_asks_the_network(run, tmp_path):
    log = tmp_path / "network.txt"
    assert not (run.parent / log.name).exists(), (run.parent / log.name).read_text()
    asking = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("import urllib.request\nurllib.request.urlopen('http://192.0.2.1')"),
        ]
    )
    asking.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(asking, tmp_path / "asking.ipynb")
    (error,) = execute_all([(tmp_path / "asking.ipynb", tmp_path / "out.ipynb", {})], tmp_path)
    assert "the network is forbidden here" in error and "192.0.2.1" in log.read_text()
