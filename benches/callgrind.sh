#!/usr/bin/env bash
# Instructions, counted by callgrind, deferfree against the `mimalloc` crate: of a small alloc/free pair, of a small free
# in one of the thread's own pages, and of what a free executes before mimalloc's own `mi_free` where it comes to
# that. Fails if one of them is over its limit. Skipped where there is no valgrind; with REQUIRED=1 that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

# Instructions of a pair, in hundredths of the `mimalloc` crate's, in each row.
pair_limit=90
pair_wanted=85
# Instructions of a small free, its jump or call included, more than with the `mimalloc` crate.
free_limit=4
# Instructions of a small free without those of mi_free, of a block that another thread has allocated: what leads there, its
# jump or call included, and what follows, if anything does.
passed_limit=15

if ! command -v valgrind >/dev/null; then
    echo "callgrind.sh: SKIPPED, valgrind is not installed" >&2
    exit "${REQUIRED:-0}"
fi

# A multiple of the 64 places at which they are made, see pairs/work.rs.
pairs=19200
rows=(8 16 64 256 1024 8192 mixed)
profile=$(mktemp)
trap 'rm -f "$profile"' EXIT

# Prints the path of a bench's executable.
build() {
    cargo bench --quiet --bench "$1" --no-run --message-format=json |
        grep -o '"executable":"[^"]*'"$1"'[^"]*"' | tail -n 1 | cut -d '"' -f 4
}

# Runs a program, row, number of pairs; what callgrind counted is in $profile.
count() {
    local output
    if ! output=$(valgrind --tool=callgrind --callgrind-out-file="$profile" \
        --compress-strings=no --compress-pos=no "$1" "$2" "$3" 2>&1); then
        printf '%s\n' "$output" >&2
        echo "callgrind.sh: $1 $2 $3 failed" >&2
        return 1
    fi
}

# All instructions.
in_all() { awk '/^(summary|totals):/ { print $2; exit }' "$profile"; }

# Those of `free_fixed` or `free_sized`, with what they call. A line "calls=" is followed by what the calls came to,
# and a jump from one function to another counts as a call.
in_free() {
    awk '
        /^cfn=/ { callee = substr($0, 5) }
        /^calls=/ { getline; if (callee ~ /work::free_(fixed|sized)/) { whole += $2; seen = 1 } }
        END { if (seen) print whole }
    ' "$profile"
}

# As in_free, without those of the `mi_free` that these come to.
before_mi_free() {
    awk '
        /^cfn=/ { callee = substr($0, 5) }
        /^calls=/ {
            getline
            if (callee ~ /work::free_(fixed|sized)/) { whole += $2; seen = 1 }
            if (callee == "mi_free") mi_free += $2
        }
        END { if (seen && mi_free) print whole - mi_free }
    ' "$profile"
}

# A figure (in_all, before_mi_free) per pair, in hundredths: figure, program, row. What starting and ending
# the process takes is the same for N and for 2N pairs, and drops out of the difference. What depends on
# addresses differs from run to run, by an instruction or so.
per_pair() {
    local once twice
    count "$2" "$3" "$pairs"
    once=$("$1")
    count "$2" "$3" "$((2 * pairs))"
    twice=$("$1")
    if [[ -z $once || -z $twice ]]; then
        echo "callgrind.sh: callgrind gave no count for $2 $3" >&2
        return 1
    fi
    echo $(((100 * (twice - once) + pairs / 2) / pairs))
}

# A number of hundredths.
decimal() { printf '%d.%02d' $(($1 / 100)) $(($1 % 100)); }

mimalloc=$(build pairs_mimalloc)
deferfree=$(build pairs_deferfree)

over=0
unwanted=0
printf '%-8s  %14s  %14s  %6s\n' "block B" "mimalloc ins." "deferfree ins." "ratio"
for row in "${rows[@]}"; do
    theirs=$(per_pair in_all "$mimalloc" "$row")
    ours=$(per_pair in_all "$deferfree" "$row")
    awk -v row="$row" -v theirs="$theirs" -v ours="$ours" \
        'BEGIN { printf "%-8s  %14.2f  %14.2f  %6.3f\n", row, theirs / 100, ours / 100, ours / theirs }'
    if ((100 * ours > pair_limit * theirs)); then
        over=$((over + 1))
    fi
    if ((100 * ours > pair_wanted * theirs)); then
        unwanted=$((unwanted + 1))
    fi
done

# The largest difference.
most=-10000
printf '\n%-8s  %14s  %14s\n' "free" "mimalloc ins." "deferfree ins."
for row in fixed sized; do
    theirs=$(per_pair in_free "$mimalloc" "$row")
    ours=$(per_pair in_free "$deferfree" "$row")
    printf '%-8s  %14s  %14s\n' "$row" "$(decimal "$theirs")" "$(decimal "$ours")"
    if ((ours - theirs > most)); then
        most=$((ours - theirs))
    fi
done
echo "(64 B, in a page of the thread's own; fixed: a size known to the compiler, as a Box's)"

theirs=$(per_pair before_mi_free "$mimalloc" passed)
passed=$(per_pair before_mi_free "$deferfree" passed)
printf '%-8s  %14s  %14s\n' passed "$(decimal "$theirs")" "$(decimal "$passed")"
echo "(64 B, another thread's, without mi_free, with the jump to it)"
echo

failed=0
pair="instructions of a pair, at most"
if ((over > 0)); then
    echo "bar: $pair $(decimal $pair_limit) x the mimalloc crate's: NOT MET in $over of ${#rows[@]} rows"
    failed=1
else
    echo "bar: $pair $(decimal $pair_limit) x the mimalloc crate's: met"
fi
if ((unwanted > 0)); then
    echo "wanted: $pair $(decimal $pair_wanted) x: not yet in $unwanted of ${#rows[@]} rows"
else
    echo "wanted: $pair $(decimal $pair_wanted) x: met"
fi
free="instructions of a small free, at most $free_limit more than with the mimalloc crate"
if ((most > 100 * free_limit)); then
    echo "bar: $free: NOT MET"
    failed=1
else
    echo "bar: $free: met"
fi
free="instructions of another thread's block before mi_free, $(decimal "$passed"), at most $passed_limit"
if ((passed > 100 * passed_limit)); then
    echo "bar: $free: NOT MET"
    failed=1
else
    echo "bar: $free: met"
fi
exit "$failed"
