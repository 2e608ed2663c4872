# The checks of .ci/run one by one, in the environment that is active.
.PHONY: install test lint types contract wheel check

install: ; pip install -e ".[test]"
test: ; pytest
lint: ; ruff check . && ruff format --check .
types: ; mypy attention_zoo
contract: ; lint-imports
wheel: ; python -m build
check: lint types contract test wheel
