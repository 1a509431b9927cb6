"""`python -m utils.sample`: make a synthetic sample."""

from utils.sample.generator import main

main()
