"""Hand-bone X-ray segmentation: the package behind the notebooks (see README.md, "How it is built")."""
