#!/usr/bin/env bash
# scipy.stats.hypergeom has NaN for the variance of a population of one, where nothing is left to chance.
#
# Seen with scipy 1.17.1 and numpy 2.4.6 on Python 3.11: hypergeom(1, 1, 1) is always 1, its mean is right, pmf
# and cdf are right, and var() and std() are NaN with a RuntimeWarning (they divide by the size less one). Also
# where a population of two has a certain outcome the variance is the right 0.
# We met it where a stratum of weights holds a single one: summed over strata, one NaN takes all of the variance.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" -W ignore::RuntimeWarning - <<'PYTHON'
import math
import numpy, scipy
from scipy.stats import hypergeom

print("scipy", scipy.__version__, "numpy", numpy.__version__)
for size, marked, taken in ((1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)):
    law = hypergeom(size, marked, taken)
    assert law.pmf(marked * taken) == 1 and law.mean() == marked * taken
    print(f"hypergeom({size}, {marked}, {taken}): mean {law.mean()}, variance {law.var()}")
    if not math.isnan(law.var()) or not math.isnan(law.std()):
        raise SystemExit("changed: the variance is a number")
assert hypergeom(2, 2, 1).var() == 0
print("hypergeom(2, 2, 1): variance", hypergeom(2, 2, 1).var())
PYTHON
