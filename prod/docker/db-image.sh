#!/usr/bin/env bash
# Builds the image of the databases: MariaDB 10.11 out of Debian's packages, with its own loader and libraries, an empty database, and
# nothing else. No registry is needed. Usage: db-image.sh NAME
set -euo pipefail
cd "$(dirname "$0")/../.."
name=${1:?usage: db-image.sh NAME}

tests/db/get.sh mariadb
from=target/db/mariadb
context=target/db-image
rm -rf "$context"
mkdir -p "$context/rootfs/data/db" "$context/rootfs/data/tmp" "$context/rootfs/credentials"
touch "$context/rootfs/credentials/.keep" "$context/rootfs/data/tmp/.keep"
cp -r "$from" "$context/db"

# The system's tables. Users are made when a container starts, from a file that it is given.
(
    echo "CREATE DATABASE mysql;"
    echo "USE mysql;"
    cat "$from"/share/system/mysql_system_tables.sql "$from"/share/system/mysql_performance_tables.sql
) | "$from/run" --no-defaults --bootstrap --user="$(id -un)" --datadir="$PWD/$context/rootfs/data/db" \
    --tmpdir="$PWD/$context/rootfs/data/tmp" --innodb-log-file-size=16M >"$context/bootstrap.log" 2>&1 || {
    cat "$context/bootstrap.log" >&2
    exit 1
}

cat >"$context/Dockerfile" <<'END'
FROM scratch
COPY db/ /db/
COPY --chown=65532:65532 rootfs/ /
USER 65532:65532
EXPOSE 3306
ENTRYPOINT ["/db/lib/loader", "--library-path", "/db/lib", "/db/mariadbd", "--no-defaults", "--datadir=/data/db", "--tmpdir=/data/tmp", \
    "--socket=/data/tmp/socket", "--pid-file=/data/tmp/pid", "--init-file=/credentials/init.sql", "--bind-address=0.0.0.0", "--port=3306", \
    "--skip-name-resolve", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--performance-schema=OFF", \
    "--innodb-flush-log-at-trx-commit=1", "--max-allowed-packet=64M", "--lc-messages-dir=/db/share/english", \
    "--character-sets-dir=/db/share/charsets"]
END
docker build -q -t "$(echo "$name" | tr '[:upper:]' '[:lower:]')/database:latest" --label "twinshard.deployment=$name" "$context"
