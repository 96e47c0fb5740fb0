#!/bin/sh
# Makes the table from its own first two columns: sh llamacpp_tensor_split.sh < llamacpp_tensor_split.tsv
set -eu
here=$(dirname "$0")
program=$(mktemp)
trap 'rm -f "$program"' EXIT
"${CC:-cc}" -O2 -std=c11 -Wall -Wextra -Werror -ffp-contract=off -o "$program" "$here/llamacpp_tensor_split.c"
"$program"
