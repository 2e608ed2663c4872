"""One file a result: every module here with a function `experiment` can be trained with `python -m experiments`."""
