#!/usr/bin/env bash
# Builds the image of a deployment's databases: on the image DB_IMAGE of MySQL or MariaDB where it is here or a registry gives it, else on
# MariaDB 10.11 out of Debian's packages, which needs no registry. Says which. What a deployment has, it keeps: one program does not read
# the files of the other. Usage: [DB_IMAGE=mysql:8.4] db-image.sh NAME
set -euo pipefail
cd "$(dirname "$0")/../.."
name=${1:?usage: db-image.sh NAME}
packaged=mariadb-of-debian
image=$name/database:latest
context=target/db-image
rm -rf "$context"
mkdir -p "$context"/rootfs/{data/tmp,credentials}
touch "$context/rootfs/credentials/.keep" "$context/rootfs/data/tmp/.keep"

label() {
    docker image inspect -f "{{ index .Config.Labels \"twinshard.$1\" }}" "$image" 2>/dev/null || true
}
has=$(label database)
wanted=${DB_IMAGE:-${has:-mysql:8.4}}
is_here() {
    docker image inspect "$1" >/dev/null 2>&1 || timeout 300 docker pull -q "$1" >"$context/pull.log" 2>&1
}
# What the image is made of, so that it is made again only when that changes.
keep_if_made_of() {
    made_of=$({ cat prod/docker/db-image.sh prod/docker/database.sh && echo "$1"; } | sha256sum | cut -d ' ' -f 1)
    if [ "$(label made-of)" = "$made_of" ]; then
        keep
    fi
}
keep() {
    echo "databases  $wanted"
    exit
}
build() {
    docker build -q -t "$image" --label "twinshard.deployment=$name" --label "twinshard.database=$1" --label "twinshard.made-of=$made_of" \
        "$context" >"$context/build.log" 2>&1 || {
        cat "$context/build.log" >&2
        exit 1
    }
    echo "databases  $1"
}

if [ "$wanted" != "$packaged" ] && is_here "$wanted"; then
    keep_if_made_of "$(docker image inspect -f '{{ .Id }}' "$wanted")"
    cp prod/docker/database.sh "$context/"
    cat >"$context/Dockerfile" <<END
FROM $wanted
COPY --chown=65532:65532 rootfs/ /
COPY database.sh /database.sh
USER 65532:65532
EXPOSE 3306
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s CMD ["sh", "/database.sh", "client", "-e", "SELECT 1"]
ENTRYPOINT ["sh", "/database.sh"]
END
    build "$wanted"
    exit
fi
if [ "$wanted" != "$packaged" ] && [ "$wanted" = "$has" ]; then
    # What it was made on is gone, and not needed any more.
    keep
fi
if [ "$wanted" != "$packaged" ]; then
    reason=$(tail -n 1 "$context/pull.log")
    if [ -n "${DB_IMAGE:-}" ]; then
        echo "The image $wanted is not here and cannot be had: $reason" >&2
        exit 1
    fi
    echo "The image $wanted cannot be had here ($reason): MariaDB 10.11 out of Debian's packages takes its place"
fi

tests/db/get.sh mariadb >/dev/null
from=target/db/mariadb
wanted=$packaged
keep_if_made_of "$(sha256sum <"$from/mariadbd")"
mkdir -p "$context/rootfs/data/db" "$context"/system/{db,etc,bin,lib64,lib/x86_64-linux-gnu}
# Where programs look for them.
cp "$from/lib/loader" "$context/system/lib64/ld-linux-x86-64.so.2"
find "$from/lib" -name '*.so*' -exec cp {} "$context/system/lib/x86_64-linux-gnu/" \;
cp -r "$from/mariadbd" "$from/share" "$context/system/db/"
cp "$from/client" "$context/system/bin/mariadb"
ln -s mariadb "$context/system/bin/mysql"
# `docker exec -it Server0-db mysql` is let in as the user that the server is.
cat >"$context/system/etc/my.cnf" <<'END'
[client]
socket=/data/tmp/socket
character-sets-dir=/db/share/charsets
!include /credentials/client.cnf
END

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
COPY system/ /
COPY --chown=65532:65532 rootfs/ /
ENV PATH=/bin
USER 65532:65532
EXPOSE 3306
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s CMD ["/bin/mariadb", "-e", "SELECT 1"]
ENTRYPOINT ["/db/mariadbd", "--no-defaults", "--datadir=/data/db", "--tmpdir=/data/tmp", \
    "--socket=/data/tmp/socket", "--pid-file=/data/tmp/pid", "--init-file=/credentials/init.sql", "--bind-address=0.0.0.0", "--port=3306", \
    "--skip-name-resolve", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--performance-schema=OFF", \
    "--innodb-flush-log-at-trx-commit=1", "--max-allowed-packet=64M", "--lc-messages-dir=/db/share/english", \
    "--character-sets-dir=/db/share/charsets"]
END
build "$packaged"
