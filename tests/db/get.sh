#!/usr/bin/env bash
# Fetches a database server for the tests of the row store, from Debian's packages, without installing anything: it is unpacked under
# target/db/NAME, where the tests look for it. `mariadb` is what the running Debian has.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=${1:-mariadb}
case $name in
mariadb) packages=(mariadb-server-core libaio1 libnuma1 liburing2 libpcre2-8-0) ;;
*)
    echo "usage: $0 [mariadb]" >&2
    exit 2
    ;;
esac

target=target/db/$name
if [ -x "$target/usr/sbin/mariadbd" ]; then
    echo "$target is there already"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
if ! apt-cache show "${packages[0]}" >/dev/null 2>&1; then
    apt-get update -qq
fi
(cd "$work" && apt-get download -qq "${packages[@]}")
mkdir -p "$work/root"
for package in "$work"/*.deb; do
    dpkg -x "$package" "$work/root"
done
# Whole or not at all.
mkdir -p target/db
rm -rf "$target"
mv "$work/root" "$target"
LD_LIBRARY_PATH=$target/usr/lib/x86_64-linux-gnu "$target/usr/sbin/mariadbd" --version
