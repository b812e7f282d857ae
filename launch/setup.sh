# Sourced by the other scripts, from the repository's root: makes .venv and installs the package into it.

# What is imported is compiled when it is first imported, and that is kept: every process would take seconds for it.
unset PYTHONDONTWRITEBYTECODE

make_venv() {
  local python=${PYTHON:-python3}
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: Python 3.11 or newer is needed, $python is $("$python" --version 2>&1); set PYTHON=/path/to/python3.11" >&2
    exit 1
  fi
  if ! "$python" -m venv .venv; then
    rm -rf .venv
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      apt-get update -qq && apt-get install -y -qq python3-venv
      "$python" -m venv .venv
    else
      echo "error: $python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)" >&2
      exit 1
    fi
  fi
}

# install_into_venv REQUIREMENT: `.` or `.[test]`; skipped where the same files were installed before. Python compiles what
# it imports when it does: compiling all that is installed would take more than half of the time.
install_into_venv() {
  local stamp wanted
  [ -x .venv/bin/python ] || make_venv
  stamp=".venv/installed-$(echo "$1" | tr -dc 'a-z')"
  wanted=$(cat pyproject.toml constraints.txt launch/setup.sh | cksum)
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "installing $1 into .venv"
    .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e "$1"
    echo "$wanted" >"$stamp"
  fi
}
