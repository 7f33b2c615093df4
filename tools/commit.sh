#!/bin/sh
# Prints the commit of this checkout, 12 digits, "-dirty" when tracked files differ from it, and
# "unknown" outside a git checkout (a source archive).
cd "$(dirname "$0")/.." || exit 1
commit=$(git rev-parse --short=12 HEAD 2>/dev/null) || { echo unknown; exit 0; }
git diff --quiet HEAD -- 2>/dev/null || commit=$commit-dirty
echo "$commit"
