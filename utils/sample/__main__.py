"""Make a synthetic sample: `python -m utils.sample`."""

from utils.sample.generator import main

main()
