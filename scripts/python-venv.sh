# Sourced by scripts that compare with programs in Python: packages pinned by version and SHA-256, in a virtual environment of their own. The
# script has `fail` and stands in the repository's root.

# python_venv NAME FOLDER: brings the packages of scripts/NAME.txt into FOLDER, unless they are there.
python_venv() {
    local pinned=scripts/$1.txt venv=$2 python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "$python is missing; install Python 3.11"
    "$python" -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" ||
        fail "$python is not Python 3.11, for which the packages are pinned; give another in PYTHON"
    command -v cargo >/dev/null || fail "cargo is missing; install a Rust toolchain"
    if ! cmp -s "$pinned" "$venv/installed.txt"; then
        rm -rf "$venv"
        "$python" -m venv "$venv" || fail "$python cannot make a virtual environment; install python3.11-venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$pinned" ||
            fail "pip could not install $pinned; check the network"
        cp "$pinned" "$venv/installed.txt"
    fi
}

# only_prepare LAST ARGUMENT: sets `prepare` where the script was given --prepare, and prints lines 2 to LAST of it where help is wanted.
only_prepare() {
    prepare=
    case ${2:-} in
    -h | --help)
        sed -n "2,$1s/^# \{0,1\}//p" "$0"
        exit
        ;;
    --prepare) prepare=true ;;
    '') ;;
    *) fail "unexpected argument \`$2\`; it takes --prepare or none" ;;
    esac
}
