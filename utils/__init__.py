"""Hand-bone X-ray segmentation: one module per step of the pipeline (see README.md, "How it is built")."""
