# Short names for what one types often. `bash .ci/run` is the whole list of checks.

default:
    @just --list

# Everything CI checks
ci:
    bash .ci/run

# All tests, on real control planes; arguments go to cargo test
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

# The main job, shown on real API servers
demo *arguments:
    bash kind-clusters/demo.sh {{arguments}}

# Figures on this machine: `just bench change`
bench *arguments:
    bash kind-clusters/tools/build.sh
    cargo build --profile bench --workspace --bins --locked
    cargo run --profile bench --locked -p attest-tests --bin attest-bench -- {{arguments}}
