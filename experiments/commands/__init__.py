"""The commands behind `python -m experiments`: list, train, evaluate, predict, compare."""
