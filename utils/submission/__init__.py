"""Write, read, check, score, vote on and compare submission files, by RLE intervals instead of pixels.

A submission is a CSV with the columns image_name, class, rle: one row for each test image (its file name, without the
folder) and class, ordered by the images' relative paths, then by class; an empty mask is an empty field.
Rows are always matched by image and class, never by position. This package imports no torch, so that it starts at once.
`python -m utils.submission --help` lists the commands.
"""

from utils.submission.checker import check as check
from utils.submission.combine import compare as compare
from utils.submission.combine import score as score
from utils.submission.combine import vote as vote
from utils.submission.csv_file import COLUMNS as COLUMNS
from utils.submission.csv_file import expected_rows as expected_rows
from utils.submission.csv_file import read as read
from utils.submission.csv_file import write as write
from utils.submission.unlikely import find_warnings as find_warnings
