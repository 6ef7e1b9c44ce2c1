#!/bin/sh
# Called by PostgreSQL for each file of its log, and by cron for the backups:
#
#   archive_command = 'DR_SPOOL=/var/lib/dr_pipelines/spool/database /app/scripts/backup.sh wal %p %f'
#   0 3 * * 0 /app/scripts/backup.sh full            (or: full SERVICE; the service is "database" unless named)
#   0 3 * * 1-6 /app/scripts/backup.sh incremental   (the same; from PostgreSQL 17 on)
#
# `wal` puts a copy of the file into the spool, from where `dr agent` ships it to the backup repository. It returns 0 only
# when a complete copy is on disk under its final name. It needs nothing but this file and coreutils.
# `full` and `incremental` start `dr backup`: $DR_COMMAND, or else the checkout's .venv/bin/dr, or else the one on the PATH.

set -u
LC_ALL=C
export LC_ALL
# The agent may be another user of the spool's group: it reads the files, nobody else does.
umask 027

# PostgreSQL restarts its archiver when a command ends by a signal or with a code above 125: no such code leaves here.
fail() {
    printf 'backup.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

# Whether the spool holds this file: 0 the same, 1 none. Other content ends the script: never overwritten, never ignored.
stored() {
    [ -e "$final" ] || return 1
    cmp -s -- "$source" "$final"
    case $? in
    0) return 0 ;;
    1) fail "$name is in the spool already, with OTHER CONTENT; not replaced. Do two servers share $spool? Compare $final with $source." ;;
    esac
    # The agent may have shipped and removed it in this moment.
    [ -e "$final" ] && fail "$final cannot be compared with $source"
    return 1
}

wal() {
    source=$1
    name=$2
    spool=${DR_SPOOL:-}
    [ -n "$spool" ] || fail "DR_SPOOL is not set: archive_command = 'DR_SPOOL=/folder $0 wal %p %f'" 2
    case $name in
    '' | .* | *[!0-9A-Za-z._]*) fail "'$name' is not a name of an archived file; is archive_command '... wal %p %f'?" 2 ;;
    esac
    case $source in
    /*) ;;
    *) source=./$source ;;
    esac
    [ -d "$spool" ] || fail "the spool $spool is not there; make it: install -d -m 2770 -o postgres $spool" 2
    [ -f "$source" ] || fail "$source is not there" 2
    final=$spool/$name
    temporary=$spool/.$name.$$.tmp

    # What a run that was killed left behind; the runs that are alive keep theirs. Zombies have no command line.
    for leftover in "$spool"/.*.tmp; do
        [ -e "$leftover" ] || continue
        of=${leftover##*/.}
        of=${of%.tmp}
        owner=${of##*.}
        if [ "$owner" = $$ ] || ! grep -qF -- "${of%.*}" "/proc/$owner/cmdline" 2>/dev/null; then
            rm -f -- "$leftover"
        fi
    done

    if stored; then
        # The run that put it there may have died before its entry in the folder was on disk.
        sync "$spool" || fail "the spool $spool cannot be brought to disk"
        return
    fi

    trap 'rm -f -- "$temporary"' EXIT
    trap 'exit 1' HUP INT QUIT TERM
    dd if="$source" of="$temporary" bs=1M conv=excl,fsync status=none ||
        fail "$name could not be copied to the spool $spool (disk full?); PostgreSQL keeps it and tries again"
    # More than the size: a copy that differs in one byte is refused here, while PostgreSQL still has the original.
    cmp -s -- "$source" "$temporary" || fail "the copy of $name in $spool is not complete; PostgreSQL tries again"
    if ! link "$temporary" "$final" 2>/dev/null && ! stored; then
        fail "$final cannot be created; may $(id -un) write there, and is it a file system with hard links?"
    fi
    sync "$spool" || fail "the spool $spool cannot be brought to disk"
}

backup() {
    root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
    if [ -n "${DR_COMMAND:-}" ]; then
        dr=$DR_COMMAND
    elif [ -x "$root/.venv/bin/dr" ]; then
        dr=$root/.venv/bin/dr
    else
        dr=$(command -v dr) || fail "the command dr was not found: set DR_COMMAND to its path" 2
    fi
    # cron starts in the home folder; the plan is the checkout's unless something else is said.
    if [ -z "${DR_PLAN:-}" ] && ! [ -e recovery-plan.yaml ] && [ -e "$root/recovery-plan.yaml" ]; then
        DR_PLAN=$root/recovery-plan.yaml
        export DR_PLAN
    fi
    # For `wal` alone: dr keeps a folder for each service, in DR_SPOOL__<SERVICE>.
    unset DR_SPOOL
    "$dr" backup "$1" "${2:-database}"
}

case ${1:-}:$# in
wal:3) wal "$2" "$3" ;;
full:1 | full:2 | incremental:1 | incremental:2) backup "$@" ;;
*) fail "usage: $0 wal PATH NAME | full [SERVICE] | incremental [SERVICE]" 2 ;;
esac
