#!/bin/sh
# Runs the MySQL or MariaDB of an image that a registry gave: on /data, for nobody but who /credentials/init.sql names. With `client` first
# it is a client of that server: docker exec -it Server0-db sh /database.sh client
set -eu
have() {
    command -v "$1" >/dev/null 2>&1
}
if [ "${1:-}" = client ]; then
    shift
    client=mysql
    if have mariadb; then client=mariadb; fi
    exec "$client" --defaults-file=/credentials/client.cnf --socket=/data/tmp/socket "$@"
fi
options="--no-defaults --tmpdir=/data/tmp"
# Made aside: what a crash left half made is not taken for a database.
if [ ! -d /data/db ]; then
    rm -rf /data/new
    if have mariadbd; then
        mariadb-install-db $options --datadir=/data/new --auth-root-authentication-method=normal --skip-test-db >/dev/null
    else
        mysqld $options --initialize-insecure --datadir=/data/new
    fi
    mv /data/new /data/db
fi
# Nobody is root from the inside either. Read at every start.
cat /credentials/init.sql >/data/tmp/init.sql
for host in localhost 127.0.0.1 ::1; do
    echo "ALTER USER IF EXISTS 'root'@'$host' ACCOUNT LOCK;" >>/data/tmp/init.sql
done
options="$options --datadir=/data/db --socket=/data/tmp/socket --pid-file=/data/tmp/pid --init-file=/data/tmp/init.sql --bind-address=0.0.0.0
    --port=3306 --skip-name-resolve --innodb-buffer-pool-size=64M --performance-schema=OFF --innodb-flush-log-at-trx-commit=1
    --max-allowed-packet=64M"
if have mariadbd; then
    exec mariadbd $options
fi
exec mysqld $options --mysqlx=OFF --secure-file-priv=NULL
