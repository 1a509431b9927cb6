"""A light environment that adds ultralytics to this one, and a small data set on which YOLO learns within seconds."""

import os
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import cv2
import numpy as np
import orjson
import pytest

PACKAGE = "ultralytics-opencv-headless"
UNREACHABLE = ("(from versions: none)", "NewConnectionError", "NameResolutionError", "ConnectTimeoutError")
"""What pip says where it reaches no package index."""

NO_NETWORK = '''
"""Refuses and writes down every connection to another machine."""

import os
import socket

HERE = ("127.0.0.1", "::1", "localhost", "", None)
connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo


def refuse(host):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{host}\\n")
    raise OSError(f"no network in this test: {host}")


def guarded_connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in HERE:
        refuse(address[0])
    return connect(self, address)


def guarded_getaddrinfo(host, *arguments, **named):
    return getaddrinfo(host, *arguments, **named) if host in HERE else refuse(host)


if "NETWORK_LOG" in os.environ:
    socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_getaddrinfo
'''


class Environment:
    """A virtual environment that sees all packages of this one, with ultralytics as the README installs it.

    Its programs write to the file `network` what they ask of other machines.
    """

    def __init__(self, folder: Path):
        self.folder, self.network = folder, folder / "network.log"
        self.bin = folder / "bin"
        run([sys.executable, "-m", "venv", "--without-pip", folder])
        packages = Path(
            run([self.bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
        )
        (packages / "main.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
        install = [self.bin / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode and any(text in done.stderr for text in UNREACHABLE):
            message = f"YOLO IS NOT TESTED: no package index can be reached to install {PACKAGE}"
            warnings.warn(message, stacklevel=2)
            pytest.skip(message)
        assert done.returncode == 0, done.stderr[-3000:]
        (packages / "no_network.py").write_text(NO_NETWORK)
        (packages / "no_network.pth").write_text("import no_network\n")

    def run(self, *command: str | Path, check: bool = True, **more) -> str:
        """What `command`, a program of the environment with its arguments, prints."""
        return run([self.bin / command[0], *command[1:]], check, env=self.variables(), **more)

    def variables(self) -> dict[str, str]:
        """The environment variables of its processes."""
        place = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "NETWORK_LOG": str(self.network)}
        return os.environ | place | {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(command, check: bool = True, **more) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **more)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def make_shapes(folder: Path, train: int = 18, test: int = 2, side: int = 96) -> Path:
    """A data folder in the competition's layout: in each image a bright square and, over its corner, a dark diamond."""
    random = np.random.default_rng(0)
    for number in range(train + test):
        split, ID = ("train" if number < train else "test"), f"ID{number:03}"
        for kind in ("DCM", "outputs_json"):
            (folder / split / kind / ID).mkdir(parents=True)
        x, y = random.integers(side // 6, side // 3, 2)
        size = int(random.integers(side // 4, side // 3))
        square = np.array([[x, y], [x + size, y], [x + size, y + size], [x, y + size]])
        diamond = np.array([x + size, y + size]) + size // 2 * np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])
        image = random.integers(90, 130, (side - 20 * (number % 2), side), np.uint8)  # every second one is not square
        cv2.fillPoly(image, [square], 220)
        cv2.fillPoly(image, [diamond], 20)
        cv2.imwrite(str(folder / split / "DCM" / ID / f"image{number}.png"), image)
        if split == "train":
            shapes = {"square": square, "diamond": diamond}
            annotations = [{"label": name, "points": points.tolist()} for name, points in shapes.items()]
            path = folder / split / "outputs_json" / ID / f"image{number}.json"
            path.write_bytes(orjson.dumps({"annotations": annotations}))
    (folder / "classes.txt").write_text("square\ndiamond\n")
    return folder
