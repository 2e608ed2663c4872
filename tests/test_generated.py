"""A sample of the generated cases; `python -m tests.generated` runs 10,000 of each."""

import pytest

from tests.generated import DTYPES, failures


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_nan_no_infinity_and_weights_only_where_allowed(dtype):
    found = failures(100, dtypes=[dtype])
    assert len(found) >= 30
    assert not {name: bad for name, bad in found.items() if bad}
