#!/bin/sh
# Opens an issue on GitHub, or adds to the open one of the same title: sh tools/report.sh TITLE TEXT
set -eu
number=$(gh issue list --state open --search "in:title \"$1\"" --json number --jq '.[0].number // ""')
if [ -n "$number" ]; then
    gh issue comment "$number" --body "Again: $2"
else
    gh issue create --title "$1" --body "$2"
fi
