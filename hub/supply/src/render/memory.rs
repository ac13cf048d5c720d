//! Memory available to this process and its children: the limit of the control group, or that of the machine.

use std::path::Path;

/// Assumed where the system does not tell, in bytes.
const MEMORY_BYTES_ASSUMED: u64 = 1024 * 1024 * 1024;
const GROUP_LIMIT_FILES: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Returns the memory that this process and its children may use, in bytes.
pub(super) fn available_bytes() -> u64 {
    let machine = read("/proc/meminfo").and_then(|text| machine_bytes(&text));
    let groups = group_files().into_iter().filter_map(|file| read(file)?.trim().parse().ok());
    groups.chain(machine).min().unwrap_or(MEMORY_BYTES_ASSUMED)
}

/// Files with the limit of the group that this process is in, and of those above it.
fn group_files() -> Vec<String> {
    let mut files: Vec<String> = GROUP_LIMIT_FILES.iter().map(|file| (*file).to_owned()).collect();
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let ancestors = own.map(|own| Path::new(own).ancestors()).into_iter().flatten();
    files.extend(ancestors.map(|group| format!("/sys/fs/cgroup/{}/memory.max", group.display())));
    files
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn machine_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn read(file: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(file).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert_eq!(machine_bytes("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2_097_152));
        assert_eq!(machine_bytes("MemFree: 1 kB\n"), None);
        assert!(available_bytes() > 0);
    }
}
