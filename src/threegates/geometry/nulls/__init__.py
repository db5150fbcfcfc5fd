"""Null models of an update mask: what storage, magnitude and chance alone would leave.

A null is a module of its own, with its sampler and what pages and figures say of it, and a line of `table`.

Why the nulls have *exactly* as many changed entries as the observed mask. Under the storage null an
update is s·Z with Z i.i.d. Gaussian and an unknown scale s, and entry ij changes once s passes its
critical scale s*_ij = half-gap/|Z_ij|: the mask is {ij : s*_ij < s}. The scale is a nuisance and the count
carries nearly all that the mask says about it, so we compare only masks of the observed count. Drawing Z
and changing the entries of the c smallest critical scales takes away the nuisance without estimating it.
(Given c, the scale of a draw still varies by O(c^-1/2) around the true one, which moves the law of the
mask by as little. The tests plant storage noise and check that p-values are uniform.)

What the other nulls hold fixed. Null 1b holds the norm, so its density differs from the observed one as
soon as an update is not coordinate-blind; a Jaccard, which follows density, is then compared across
densities. The magnitude null holds the count of each bin of |w| and so serves any noise, at the price of a
blur: in a bin that straddles a power of two, weights of unequal gap are exchanged as if they were alike.
"""
