#!/usr/bin/env bash
# Seen with nbformat 5.11.1, jsonschema 4.26.0 and rfc3987-syntax 1.1.0 (lark 1.3.1), Python 3.11:
# importing nbformat, which reads and checks notebooks, takes several times as long once rfc3987-syntax is
# installed beside it, as it is wherever jupyter-events is (it asks for jsonschema[format-nongpl]). jsonschema then
# imports it at its own import, and that builds a parser from the whole grammar of RFC 3987, whether or not any
# format "iri" is ever checked. Every process that opens a notebook pays for it.
# Expected to change if jsonschema or rfc3987-syntax build that parser at its first use: then this script fails.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip nbformat==5.11.1 jsonschema==4.26.0

cat > "$folder/seconds.py" <<'PY'
"""Processor seconds of one import of nbformat, the least of five processes; whether the grammar came with it."""
import subprocess
import sys

TIMED = (
    "import sys, time; start = time.process_time(); import nbformat; "
    "print(time.process_time() - start, 'rfc3987_syntax' in sys.modules)"
)
found = [subprocess.check_output([sys.executable, "-c", TIMED], text=True).split() for _ in range(5)]
print(min(float(seconds) for seconds, _ in found), found[0][1])
PY

read -r without absent < <("$folder/venv/bin/python" "$folder/seconds.py")
pip rfc3987-syntax==1.1.0 lark==1.3.1
read -r with present < <("$folder/venv/bin/python" "$folder/seconds.py")
echo "import nbformat: $without s without rfc3987-syntax (imported: $absent), $with s with it (imported: $present)"
"$folder/venv/bin/python" - "$without" "$absent" "$with" "$present" <<'PY'
import sys

without, absent, with_it, present = sys.argv[1:]
assert (absent, present) == ("False", "True"), "jsonschema imports the grammar, or does not, otherwise than seen"
ratio = float(with_it) / float(without)
assert ratio > 2, f"the import takes {ratio:.1f} times as long, which is no longer worth a word"
print(f"as seen: {ratio:.1f} times as long")
PY
