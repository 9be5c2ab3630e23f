#!/bin/sh
# Make a Python environment that can run Polyclinic; print its interpreter as the last line.
#
#     sh scripts/install.sh test      # or serve, train, bench, long, dev: what the Makefile runs first
#
# An active virtual environment is used as it is; otherwise .venv is made in the project, which
# sees the packages of $PYTHON if a torch in the supported range is among them. Nothing is done if
# the environment has what is asked for. pip and not uv: uv ignores pip's settings and local wheels,
# so it would replace a CPU build of torch by gigabytes of CUDA libraries.
set -eu
cd "$(dirname "$0")/.."
base=${PYTHON:-python3}
say() { echo "install: $*" >&2; }
fail() { say "$*"; exit 1; }
has_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
has_torch() {
  "$1" - <<'PYTHON' 2>/dev/null
import re, sys
from importlib.metadata import version
least, below = re.search(r'"torch>=([\d.]+),<([\d.]+)"', open("pyproject.toml").read()).groups()
numbers = lambda text: [int(n) for n in re.findall(r"\d+", text.partition("+")[0])]
sys.exit(not numbers(least) <= numbers(version("torch")) < numbers(below))
PYTHON
}

case $1 in  # what the environment holds afterwards
  serve) target=. holds=serve ;;
  train) target='.[train]' holds='serve train' ;;
  bench) target='.[bench]' holds='serve train bench' ;;
  test) target='.[test]' holds='serve train test' ;;
  long) target='.[long]' holds='serve train test long' ;;
  dev) target='.[dev]' holds='serve train test dev' ;;
  *) fail "'$1': serve, train, bench, test, long or dev is expected" ;;
esac
if command -v flock >/dev/null; then exec 9<pyproject.toml; flock 9; fi  # one install at a time

active=${VIRTUAL_ENV:-}
[ -n "$active" ] || [ "${CONDA_DEFAULT_ENV:-base}" = base ] || active=${CONDA_PREFIX:-}
if [ -n "$active" ] && [ -x "$active/bin/python" ]; then
  python=$active/bin/python
elif "$base" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null; then
  python=$("$base" -c 'import sys; print(sys.executable)')
else
  python=$PWD/.venv/bin/python
  if [ ! -x "$python" ]; then
    has_python "$base" || fail "$base is $("$base" -V 2>&1); Polyclinic needs Python 3.11 or" \
      "newer: name one that you have, e.g. \`make serve PYTHON=python3.12\`"
    say "making a virtual environment in $PWD/.venv"
    options=; if has_torch "$base"; then options=--system-site-packages; fi
    "$base" -m venv $options .venv >&2 || { rm -rf .venv; fail "\`$base -m venv\` failed: install" \
      "your system's venv package (on Debian: python3-venv), or activate an environment first"; }
  fi
fi

stamp=$(dirname "$(dirname "$python")")/polyclinic-installed
digest=$({ echo "$PWD"; cat pyproject.toml constraints.txt; } | cksum | tr ' ' -)
if ! grep -qs "^$digest.* $1" "$stamp"; then
  has_python "$python" || fail "the environment's $python is $("$python" -V 2>&1); Polyclinic" \
    "needs Python 3.11 or newer: activate another environment, or remove this one"
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >&2 \
    || fail "$python has no pip: install pip into that environment first"
  if ! has_torch "$python" && ! command -v nvidia-smi >/dev/null; then
    say "no NVIDIA GPU was found: if pip downloads gigabytes for torch, stop it (Ctrl-C), install" \
      "the CPU build as PyTorch's 'Get Started' page says, with \`$python -m pip\`, and try again"
  fi
  say "installing Polyclinic and its dependencies ($1)"
  quiet=--quiet; if [ -t 2 ]; then quiet=; fi
  "$python" -m pip install $quiet --disable-pip-version-check -c constraints.txt -e "$target" >&2 \
    || fail "pip failed (its message is above): check the network and the package index that pip" \
      "is set up for, then run this again; what is installed already is kept"
  # A service may be forbidden to write, and its processes would each compile these modules again.
  "$python" -m compileall -q adapters deployments references router scripts >&2 || :
  echo "$digest $holds" >"$stamp"
fi
echo "$python"
