"""The scripts here need packages that the tests do not: pytest leaves them alone."""

collect_ignore_glob = ["*.py"]
