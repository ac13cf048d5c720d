#!/bin/sh
# Prints the output of the installed git or ssh for each failure that messages.rs classifies.
#
# Usage: ./capture.sh git > golden/git-VERSION.txt
#        ./capture.sh ssh > golden/openssh-VERSION.txt    (needs sshd)
#
# The programs run with the arguments and the environment of transport/program.rs. Every case is preceded by a
# line `=== CAUSE: description`; CAUSE is a variant of `FailureCause`, or `None` for output that no message matches.
set -eu

work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT

# Runs a command without our environment and prints its diagnostics, with temporary names replaced.
run() {
    echo "=== $1"
    shift
    env -i PATH="$PATH" LC_ALL=C GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_PROTOCOL=version=2 \
        "$@" 2>&1 >/dev/null </dev/null |
        sed -e "s#$work#/tmp/attest#g" -e "s/:\(${port:-none}\|${closed:-none}\)\b/:2222/g" \
            -e "s/port \(${port:-none}\|${closed:-none}\)\b/port 2222/" -e "s/^$(id -un)@/git@/" || true
}

capture_git() {
    git init --quiet --bare "$work/app.git"
    mkdir "$work/empty"
    commit=0123456789012345678901234567890123456789
    upload_pack() {
        run "$1" git -c "safe.directory=$2" upload-pack "$2"
    }
    upload_pack 'NotFound: no such directory' "$work/nothing"
    upload_pack 'NotFound: a directory without a repository' "$work/empty"
    # A client that requests a commit which the server does not have.
    printf '%s\n' '=== None: a commit that the repository does not have (refuses_object)'
    printf '0011command=fetch0001000fno-progress0032want %s\n0009done\n0000' "$commit" |
        env LC_ALL=C GIT_PROTOCOL=version=2 git upload-pack --stateless-rpc "$work/app.git" 2>&1 >/dev/null || true
}

capture_ssh() {
    port=$(free_port) closed=$(free_port)
    for name in host other known unknown; do
        ssh-keygen -q -t ed25519 -N '' -C '' -f "$work/$name"
    done
    ssh-keygen -q -t ed25519 -N secret -C '' -f "$work/encrypted"
    echo 'not a key' >"$work/broken"
    chmod 600 "$work/broken"
    cat "$work/known.pub" "$work/encrypted.pub" >"$work/authorized_keys"
    : >"$work/empty"
    echo "[127.0.0.1]:$port $(cat "$work/host.pub")" >"$work/good"
    echo "[127.0.0.1]:$port $(cat "$work/other.pub")" >"$work/bad"
    mkdir -p /run/sshd 2>/dev/null || true
    "$(command -v sshd || echo /usr/sbin/sshd)" -D -f /dev/null -p "$port" -o ListenAddress=127.0.0.1 \
        -o HostKey="$work/host" -o AuthorizedKeysFile="$work/authorized_keys" -o StrictModes=no -o UsePAM=no \
        -o PidFile=none -o PasswordAuthentication=no -o PermitRootLogin=yes -o AcceptEnv=GIT_PROTOCOL 2>/dev/null &
    server=$!
    until ssh-keyscan -p "$port" 127.0.0.1 2>/dev/null | grep -q ed25519; do :; done
    connect() { # description, known hosts, key, host, port
        run "$1" ssh -F /dev/null -a -x -T -o BatchMode=yes -o StrictHostKeyChecking=yes \
            -o UserKnownHostsFile="$work/$2" -o GlobalKnownHostsFile=/dev/null -o UpdateHostKeys=no \
            -o IdentityFile="$work/$3" -o IdentitiesOnly=yes -o IdentityAgent=none \
            -o PreferredAuthentications=publickey -o ProxyCommand=none -o ConnectTimeout=2 -p "$5" \
            -- "$(id -un)@$4" "git-upload-pack '/nothing'"
    }
    connect 'HostKey: the server has another key than the known one' bad known 127.0.0.1 "$port"
    connect 'HostKey: no key of the server is known' empty known 127.0.0.1 "$port"
    connect 'Authentication: the server does not accept the key' good unknown 127.0.0.1 "$port"
    connect 'Authentication: the file is not a key' good broken 127.0.0.1 "$port"
    connect 'Authentication: the key has a passphrase' good encrypted 127.0.0.1 "$port"
    connect 'NotFound: the server has no such repository' good known 127.0.0.1 "$port"
    connect 'Unreachable: no server listens' good known 127.0.0.1 "$closed"
    connect 'Unreachable: the name does not resolve' good known nothing.invalid 22
    for ending in closes resets ignores; do
        peer "$ending" >"$work/peer" &
        until [ -s "$work/peer" ]; do :; done
        closed=$(cat "$work/peer")
        connect "Unreachable: the server $ending the connection" good known 127.0.0.1 "$closed"
        kill $! 2>/dev/null || true
        wait $! 2>/dev/null || true
        : >"$work/peer"
    done
}

# A server without ssh: prints its port, accepts one connection and ends it as named.
peer() {
    exec python3 -c '
import socket, struct, sys, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
stream, _ = listener.accept()
if sys.argv[1] == "ignores":
    time.sleep(60)
stream.recv(100)
if sys.argv[1] == "resets":
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
stream.close()
' "$1"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

case ${1:-} in
git | ssh) "capture_$1" ;;
*) echo "usage: $0 git|ssh" >&2 && exit 2 ;;
esac
