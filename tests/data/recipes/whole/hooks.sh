# A database in two files: what it holds, and what was dumped of it.
case "$1" in
  serve)
    test -e /var/lib/db/rows || echo empty > /var/lib/db/rows
    exec sleep 1000000
    ;;
  dump)
    { echo "-- PostgreSQL database dump"; cat /var/lib/db/rows; echo "-- PostgreSQL database dump complete"; } > /var/lib/db/dump.sql
    ;;
  load)
    busybox grep -v "^--" /var/lib/db/dump.sql > /var/lib/db/rows
    ;;
esac
