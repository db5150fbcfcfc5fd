"""Laws of statistics under the nulls of masks, computed from a histogram of bf16 codes instead of drawn.

A bf16 tensor holds at most 65,536 different values. How far the next code lies, how large a weight is and how
likely noise of a scale changes it are functions of its code alone, so that the law of whatever is counted
over a null's mask is arithmetic on a histogram: one pass over the tensor, then a few thousand numbers.

How exact. Null 1a changes exactly n₁ weights, those of smallest critical scale. Seen along log s the count
N(s) rises with slope Λ = Σλ, and stopping it at n₁ takes X's share r = Σaλ/Λ of N's fluctuation away: to
first order X has the law of Σ(aᵢ − r)mᵢ at the scale where E N = n₁. Tails are a saddlepoint approximation
of the exact integral over the scale, not of that first order. Where fewer than `SMALL` weights change, or
stay as they are, first order is not enough, and the events are drawn one by one, which costs as little.
"""
