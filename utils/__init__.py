"""Hand-bone X-ray segmentation: the package behind the notebooks (see utils/README.md)."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks pypi.org for its latest version
