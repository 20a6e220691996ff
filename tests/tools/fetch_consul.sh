#!/usr/bin/env bash
# Puts the `consul` of Debian's bullseye suite (bookworm has none) into the folder given. The package comes from the
# mirror of this machine's own apt sources, by way of a scratch configuration: nothing is installed, and the
# machine's sources and lists stay as they are.
set -euo pipefail
folder=${1:?the folder to put it into}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{parts,lists/partial,cache/archives/partial,state} "$folder"

give_up() {
  echo "$1" | tee "$folder/missing" >&2
  exit 1
}

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || give_up "this machine has no apt"

# The same mirror and keys with the older suite, from either form of a sources file.
for file in /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  [ -e "$file" ] || continue
  if [[ $file == *.sources ]]; then
    awk -v RS= '/URIs:[^\n]*\/debian\/?(\n|$)/ { sub(/Suites:[^\n]*/, "Suites: bullseye"); print $0 "\n" }' \
      "$file" >>"$scratch/parts/older.sources"
  else
    sed -nE 's/^(deb (\[[^]]*\] )?[^ ]*\/debian\/?) [a-z]+ .*\bmain\b.*$/\1 bullseye main/p' \
      "$file" >>"$scratch/parts/older.list"
  fi
done
[ -s "$scratch/parts/older.sources" ] || [ -s "$scratch/parts/older.list" ] ||
  give_up "no mirror of Debian is among this machine's apt sources"

options=(
  -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$scratch/parts"
  -o "Dir::State=$scratch/state" -o "Dir::State::Lists=$scratch/lists" -o "Dir::State::status=/dev/null"
  -o "Dir::Cache=$scratch/cache" -o "APT::Sandbox::User=" -o "Acquire::Retries=2"
  -o "Acquire::http::Timeout=20" -o "Debug::NoLocking=1"
)
cd "$scratch"
timeout 120 apt-get "${options[@]}" -qq update || give_up "apt cannot read the older suite's package lists"
timeout 240 apt-get "${options[@]}" -qq download consul || give_up "apt cannot download the package consul"
dpkg-deb -x consul_*.deb unpacked
cd - >/dev/null
install -m 755 "$scratch/unpacked/usr/bin/consul" "$folder/consul"
rm -f "$folder/missing"
