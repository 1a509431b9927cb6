"""`python -m utils.pipeline` is the command that run_all.sh starts."""

import sys

from utils.pipeline.main import main

sys.exit(main())
