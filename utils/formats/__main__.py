"""`python -m utils.formats` converts, checks and scores."""

from utils.formats.commands import main

main()
