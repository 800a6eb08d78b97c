# shellcheck shell=bash
# Sourced with the project's folder as the working directory.
#   make_venv REQUIREMENTS   .venv with these packages; at once when it has them already

make_venv() {
  local requirements=$1 python stamp
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || return 1
    "$python" -m venv .venv || {
      rm -rf .venv
      echo "error: $python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
      return 1
    }
  fi
  stamp=.venv/installed-$(cat requirements*.txt | cksum | tr -d ' ')-$requirements
  [ -e "$stamp" ] && return 0
  echo "installing $requirements into .venv (the first time this takes minutes)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" || {
    echo "error: the packages of $requirements could not be installed; see pip's message above" >&2
    return 1
  }
  touch "$stamp"
}

# The first Python of at least 3.10.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return 0
    fi
  done
  echo "error: no Python of at least 3.10 found; install one, or name it: PYTHON=/path/to/python3.11 $0" >&2
  return 1
}
