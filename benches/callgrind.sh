#!/usr/bin/env bash
# Instructions per small alloc/free pair, deferfree against the `mimalloc` crate, counted by callgrind.
# Fails if deferfree needs more in any row.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v valgrind >/dev/null; then
    echo "callgrind.sh: skipped, valgrind is not installed" >&2
    exit 0
fi

pairs=20000
rows=(8 16 64 256 1024 8192 mixed)

# Prints the path of a bench's executable.
build() {
    cargo bench --quiet --bench "$1" --no-run --message-format=json |
        grep -o '"executable":"[^"]*'"$1"'[^"]*"' | tail -n 1 | cut -d '"' -f 4
}

# Instructions of one run: program, row, number of pairs.
instructions() {
    local output
    if ! output=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null "$1" "$2" "$3" 2>&1); then
        printf '%s\n' "$output" >&2
        echo "callgrind.sh: $1 $2 $3 failed" >&2
        return 1
    fi
    awk '/Collected :/ { print $NF }' <<<"$output"
}

# Instructions per pair, in hundredths. What starting and ending the process takes is the same for N and
# for 2N pairs, and drops out of the difference.
per_pair() {
    local once twice
    once=$(instructions "$1" "$2" "$pairs")
    twice=$(instructions "$1" "$2" "$((2 * pairs))")
    if [[ -z $once || -z $twice ]]; then
        echo "callgrind.sh: callgrind gave no count for $1 $2" >&2
        return 1
    fi
    echo $(((100 * (twice - once) + pairs / 2) / pairs))
}

mimalloc=$(build pairs_mimalloc)
deferfree=$(build pairs_deferfree)

over=0
printf '%-8s  %14s  %14s  %6s\n' "block B" "mimalloc ins." "deferfree ins." "ratio"
for row in "${rows[@]}"; do
    theirs=$(per_pair "$mimalloc" "$row")
    ours=$(per_pair "$deferfree" "$row")
    awk -v row="$row" -v theirs="$theirs" -v ours="$ours" \
        'BEGIN { printf "%-8s  %14.2f  %14.2f  %6.2f\n", row, theirs / 100, ours / 100, ours / theirs }'
    if ((ours > theirs)); then
        over=$((over + 1))
    fi
done

if ((over > 0)); then
    echo "bar: no more instructions than the mimalloc crate: NOT MET in $over rows"
    exit 1
fi
echo "bar: no more instructions than the mimalloc crate: met"
