"""Names made of HTML do no harm in the report, and nothing asks the network; both seen in real runs of notebooks."""

import os
import shutil
import subprocess
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest

from tests.notebooks import PAPERMILL, QUICK, outputs
from utils.data.competition import HAND_BONES, read_index
from utils.files import ROOT, read_json, write_json, write_text
from utils.pipeline.leaderboard import show_leaderboard
from utils.pipeline.report import write_report

EVIL = "<img src=x onerror=alert(1)><script>alert(2)<script>"
NO_NETWORK = """
import sys

def forbid(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else ""  # "" for a local socket, which has a path
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        host = arguments[0] if event != "socket.sendto" else arguments[1][0]
    else:
        return
    if host not in ("", None, "127.0.0.1", "::1", "localhost", b"localhost"):
        with open({log!r}, "a") as log:
            log.write(f"{{event}} {{arguments}}\\n")
        raise RuntimeError(f"the network is forbidden here: {{event}} {{arguments}}")

sys.addaudithook(forbid)
"""
"""The kernel's first lines: every attempt to reach another machine from Python fails and is noted in a file."""


class Offline:
    """Runs notebooks by papermill, in kernels that can't reach the network and note every attempt."""

    def __init__(self, folder):
        self.log = folder / "attempts.txt"
        write_text(folder / "ipython/profile_default/startup/00-no-network.py", NO_NETWORK.format(log=str(self.log)))
        asking = ("HF_HUB_OFFLINE", "NO_ALBUMENTATIONS_UPDATE", "TRANSFORMERS_OFFLINE")
        self.environment = {name: value for name, value in os.environ.items() if name not in asking}
        self.environment |= {"IPYTHONDIR": str(folder / "ipython"), "HF_HOME": str(folder / "hub")}

    def __call__(self, notebook, output, **parameters):
        output.parent.mkdir(parents=True, exist_ok=True)
        given = [text for name, value in parameters.items() for text in ("-p", name, str(value))]
        command = [PAPERMILL, notebook, output, "--no-progress-bar", *given]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=self.environment)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    return Offline(tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory, offline):
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
    steps = {"01_eda": {"examples": 2}, "03_train": QUICK | {"fold": 0, "model": "thin"}}
    for name, parameters in steps.items():
        place = output / name / ("thin/fold0" if name == "03_train" else "") / f"{name}.ipynb"
        finished = offline(f"notebooks/{name}.ipynb", place, **(common | parameters))
        assert finished.returncode == 0, finished.stderr[-3000:]
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


def test_names_made_of_html_do_no_harm_in_the_report(run):
    pages = sorted(write_report(run).parent.glob("*.html"))
    assert [page.name for page in pages] == ["01_eda.html", "03_train-thin-fold0.html", "index.html"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        parsed = Page(text)
        assert parsed.active == []
        assert EVIL in parsed.text or page.name.startswith("03"), "the name is there, as text"  # 03 only draws it
        policy = text.partition("Content-Security-Policy")[2].partition(">")[0]
        assert "default-src 'none'" in policy and "script-src" not in policy
    assert EVIL in outputs(run / "01_eda/01_eda.ipynb")
    assert EVIL in show_leaderboard(run)


def test_no_notebook_asks_the_network(run, offline, tmp_path):
    assert not offline.log.exists(), offline.log.read_text()
    assert (run / "03_train/thin/fold0/best/model.safetensors").exists()
    asking = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import urllib.request\nurllib.request.urlopen('http://192.0.2.1')")]
    )
    asking.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(asking, tmp_path / "asking.ipynb")
    finished = offline(tmp_path / "asking.ipynb", tmp_path / "out.ipynb")
    assert finished.returncode != 0 and "the network is forbidden here" in finished.stderr
    assert "192.0.2.1" in offline.log.read_text()
    offline.log.unlink()
