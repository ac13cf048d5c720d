# Shortcuts for common commands. `bash .ci/run` runs every check.

default:
    @just --list

# Every check of CI
ci:
    bash .ci/run

# All tests, on real control planes; arguments are passed to cargo test
test *arguments:
    bash tests/run.sh {{arguments}}

# Rust tests of one crate, without the run script: `just unit attest-common`
unit crate *arguments:
    cargo test -p {{crate}} {{arguments}}

lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

fmt:
    cargo fmt --all

docs:
    RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --document-private-items

deny:
    cargo deny check bans licenses sources

# Control planes for development: `just clusters 2`
clusters number="2":
    bash kind-clusters/up.sh {{number}}

clusters-down:
    bash kind-clusters/down.sh

# The demo, on real API servers
demo *arguments:
    bash kind-clusters/demo.sh {{arguments}}

# Benchmarks on this machine: `just bench change`
bench *arguments:
    bash kind-clusters/tools/build.sh
    cargo build --profile bench --workspace --bins --locked
    cargo run --profile bench --locked -p attest-tests --bin attest-bench -- {{arguments}}
