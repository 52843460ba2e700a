#!/usr/bin/env bash
# The tests that tell, with the oldest versions that pyproject.toml allows and with the newest that pip finds.
#
#   tests/versions.sh [--quick] [oldest] [newest] [--write-report FILE.json]
#
# Each end is a fresh environment with the package's wheel; the oldest has a constraints file made of pyproject.toml's own
# lower bounds. --quick takes one scheme a kernel, in minutes; the whole, which compiles every kernel, is for the night.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
quick=() ends=() report=
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=(--quick) ;;
        --write-report) report=$(realpath -m "$2"); shift ;;
        oldest | newest) ends+=("$1") ;;
        *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift
done
[ ${#ends[@]} -gt 0 ] || ends=(oldest newest)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# Tests run beside no source, so that the wheel is what they import.
mkdir "$work/tree" "$work/results"
(cd "$root" && git ls-files -z --cached --others --exclude-standard | xargs -0 tar -c --ignore-failed-read 2>/dev/null) | tar -x -C "$work/tree"
python3 -m venv "$work/build" && "$work/build/bin/pip" wheel --quiet --no-deps --wheel-dir "$work" "$work/tree"
wheel=$(echo "$work"/*.whl)
mkdir "$work/beside" && cp -r "$work/tree"/{tests,pyproject.toml,SECURITY.md} "$work/beside"
python3 - "$work/tree/pyproject.toml" > "$work/oldest.txt" <<'PYTHON'
import re, sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["files"]:
    name, bound = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement).groups()
    print(f"{name}=={bound}")
PYTHON
: > "$work/newest.txt"

tests=(tests/test_golden.py tests/test_engines.py tests/test_laws.py tests/test_duckdb_native.py tests/test_corpus.py
    tests/test_shards.py tests/test_chunk_reading.py tests/test_limits.py tests/robustness)
if [ ${#quick[@]} -gt 0 ]; then
    tests=(tests/test_golden.py tests/test_corpus.py tests/test_limits.py tests/robustness/test_files.py
        -k "not golden_ones or f32-int4_g128_asym or f32-int8_channel or f32-q4_k- or f32-nf4_g64 or f32-bf16")
fi
failed=0
for end in "${ends[@]}"; do
    printf '\n=== %s (%ss) ===\n' "$end" "$SECONDS"
    python3 -m venv "$work/$end"
    "$work/$end/bin/pip" install --quiet --constraint "$work/$end.txt" "$wheel[files]" pytest pytest-xdist hypothesis ml-dtypes
    begin=$SECONDS result=passed
    (cd "$work/beside" && "$work/$end/bin/pytest" -p no:cacheprovider "${tests[@]}" 2>&1 | tee "$work/$end.log") || { result=FAILED; failed=1; }
    "$work/$end/bin/python" - "$result" "$((SECONDS - begin))" "$work/$end.log" > "$work/results/$end.json" <<'PYTHON'
import json, platform, re, sys
from importlib.metadata import version
result, seconds, log = sys.argv[1:]
found = {"result": result, "tests": int(([0] + re.findall(r"(\d+) passed", open(log).read()))[-1]), "seconds": int(seconds)}
found |= {"python": platform.python_version()}
print(json.dumps(found | {name: version(name) for name in ("polars", "duckdb", "pyarrow", "numba", "numpy", "safetensors")}))
PYTHON
done

python3 - "$work/results" "$report" "tests/versions.sh ${quick[*]:-} ${ends[*]}" <<'PYTHON'
import json, pathlib, sys
folder, report, command = sys.argv[1:]
ends = {path.stem: json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).iterdir(), reverse=True)}
names = list(next(iter(ends.values())))
print()
for line in [["", *names], *([end, *(found.get(name, "") for name in names)] for end, found in ends.items())]:
    print(" ".join(f"{cell:>11}" for cell in line))
if report:
    pathlib.Path(report).write_text(json.dumps({"command": " ".join(command.split()) + " --write-report", "ends": ends}, indent=1) + "\n")
PYTHON
exit $failed
