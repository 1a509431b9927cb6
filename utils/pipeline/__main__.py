"""`python -m utils.pipeline`: the command behind run_all.sh."""

import sys

from utils.pipeline.main import main

sys.exit(main())
