#!/usr/bin/env bash
# Fetches a database server and its client for tests and images, from Debian's packages, without installing anything: they are unpacked
# under target/db/NAME, and target/db/NAME/run runs the server. `mariadb` (10.11) is of bookworm, `mysql` (9.x; Debian has no 8.x) of sid.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=${1:-mariadb}
case $name in
mariadb)
    suite=bookworm
    server=mariadbd
    client=mariadb
    ;;
mysql)
    suite=sid
    server=mysqld
    client=mysql
    ;;
*)
    echo "usage: $0 [mariadb|mysql]" >&2
    exit 2
    ;;
esac

target=target/db/$name
if [ -x "$target/run" ] && [ -x "$target/client" ]; then
    echo "$target is there already"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# Package lists of its own, from wherever this machine's come.
mirror=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -m 1 '/debian$') || {
    echo "$0: this machine's apt knows no Debian mirror" >&2
    exit 1
}
mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/root"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/apt/sources.list"
touch "$work/apt/status"
options=(-qq -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/apt/lists"
    -o Dir::Cache="$work/apt/cache" -o Dir::State::status="$work/apt/status" -o Acquire::Check-Valid-Until=false
    -o APT::Install-Recommends=false -o APT::Sandbox::User=root)
apt-get "${options[@]}" update
# All that it depends on, as on a machine that has nothing.
apt-get "${options[@]}" -y --download-only install "$name-server-core" "$name-client-core" >/dev/null
for file in "$work"/apt/cache/archives/*.deb; do
    dpkg -x "$file" "$work/root"
done

# Only what the server loads. Its own loader runs it: its C library may be newer than this machine's.
cd "$work/root"
loader=$(find . -name ld-linux-x86-64.so.2 -type f | head -n 1)
library_path=$PWD/usr/lib/x86_64-linux-gnu:$PWD/lib/x86_64-linux-gnu
mkdir -p "$work/out/lib"
cp -L "$loader" "$work/out/lib/loader"
for program in "usr/sbin/$server" "usr/bin/$client"; do
    "$loader" --library-path "$library_path" --list "$program" | awk '$3 ~ /^\// { print $3 }' | xargs -I{} cp -L {} "$work/out/lib/"
done
cp "usr/sbin/$server" "$work/out/$server"
cp "usr/bin/$client" "$work/out/client"
# What a new database is made of, for images.
mkdir -p "$work/out/share/system"
find usr/share/mysql -maxdepth 1 -name 'mysql_*tables*.sql' -exec cp {} "$work/out/share/system/" \;
cp -r usr/share/mysql/english usr/share/mysql/charsets "$work/out/share/"
cat >"$work/out/run" <<END
#!/bin/sh
here=\$(cd "\$(dirname "\$0")" && pwd)
exec "\$here/lib/loader" --library-path "\$here/lib" "\$here/$server" "\$@" --lc-messages-dir="\$here/share/english" --character-sets-dir="\$here/share/charsets"
END
chmod +x "$work/out/run"
cd - >/dev/null

# Whole or not at all.
mkdir -p target/db
rm -rf "$target"
mv "$work/out" "$target"
"$target/run" --no-defaults --version
