#!/usr/bin/env bash
# scipy.stats.binom.pmf raises OverflowError for valid arguments whose probability is 0 to machine precision.
#
# Seen with scipy 1.17.1 and numpy 2.4.6 on Python 3.11: for a chance of success between some 1e-308 and 1e-306,
# a normal float64, and many successes, the mass is far below 1e-300 and the answer should be 0, as it is for
# 1e-310 and for 1e-300. One such element costs the answers of a whole array. binom.logpmf gives a finite number.
# We met it with the chance that noise changes a stored weight, which takes such values.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" - <<'PYTHON'
import numpy, scipy
from scipy.stats import binom

print("scipy", scipy.__version__, "numpy", numpy.__version__)
for chance in (1e-310, 1e-300):
    assert binom.pmf(10, 100, chance) == 0.0, chance
    print(f"pmf(10, 100, {chance:g}) = 0")
try:
    found = binom.pmf(10, 100, 1e-307)
except OverflowError as error:
    print("pmf(10, 100, 1e-307) raises OverflowError:", error)
else:
    raise SystemExit(f"changed: pmf(10, 100, 1e-307) = {found}")
try:
    found = binom.pmf(10, 100, numpy.array([0.1, 1e-307]))
except OverflowError:
    print("and so does an array that holds it")
else:
    raise SystemExit(f"changed: an array gives {found}")
print("logpmf(10, 100, 1e-307) =", binom.logpmf(10, 100, 1e-307))
assert numpy.isfinite(binom.logpmf(10, 100, 1e-307))
PYTHON
