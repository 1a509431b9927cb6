"""Hand-bone X-ray segmentation: the package behind the notebooks (see README.md, "How it is built")."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks pypi.org for its latest version
