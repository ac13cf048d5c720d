//! The isolation of a process that renders, and of every program that it runs, by the kernel.
//!
//! System calls by seccomp, files by Landlock where the kernel has it, memory, processor time and file size by limits.
//! A list of denied system calls, not of allowed ones: each release of Go needs others.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Restrictions that a worker applies to itself before it reads anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Restrictions {
    /// Process that started the worker, with which it ends.
    pub(super) parent: u32,
    /// The only directory that it may write to.
    pub(super) directory: Option<PathBuf>,
    /// The only program besides itself that it may run.
    pub(super) program: Option<PathBuf>,
    /// Limit of memory, in bytes.
    pub(super) memory_bytes_max: u64,
    /// Limit of processor time, in seconds.
    pub(super) cpu_seconds_max: u64,
    /// Limit of the size of a file, in bytes.
    pub(super) file_bytes_max: u64,
    /// Render only when every restriction is in force.
    pub(super) required: bool,
}

/// Protection of files by Landlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileIsolation {
    /// A process that renders reads its own files and libraries only.
    Enforced,
    /// The kernel has no Landlock: a process that renders reads what its user may read.
    Unsupported,
}

#[cfg(target_os = "linux")]
pub(super) use linux::{forbid_processes, restrict};

#[cfg(not(target_os = "linux"))]
pub(super) use elsewhere::{forbid_processes, restrict};

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::{FileIsolation, Restrictions};

    pub(in super::super) fn restrict(_: &Restrictions) -> Result<FileIsolation, String> {
        Err("only Linux isolates them".to_owned())
    }

    pub(in super::super) fn forbid_processes() -> Result<(), String> {
        Err("only Linux isolates them".to_owned())
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;
    use std::net::TcpListener;
    use std::path::Path;

    use landlock::{
        ABI, Access as _, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr as _,
        RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
    };
    use rustix::process::{
        Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
    };
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };

    use super::{FileIsolation, Restrictions};

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;

    /// Most files that a process may have open.
    const OPEN_FILES_MAX: u64 = 512;
    /// Newest version of Landlock whose rights are used.
    const LANDLOCK: ABI = ABI::V6;
    /// Libraries of dynamically linked programs.
    const LIBRARIES: [&str; 8] = [
        "/usr",
        "/lib",
        "/lib32",
        "/lib64",
        "/bin",
        "/nix/store",
        "/etc/ld.so.cache",
        "/etc/ld.so.preload",
    ];
    /// Numbers of the x32 interface of x86-64, which a kernel may offer beside its own.
    #[cfg(target_arch = "x86_64")]
    const X32_BIT: i64 = 0x4000_0000;

    /// System calls that are denied: sockets, other processes, kernel interfaces, and leaving the process group.
    const DENIED: &[i64] = &[
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_kcmp,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_setsid,
        libc::SYS_setpgid,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_open_by_handle_at,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_setrlimit,
    ];

    /// Puts every restriction in force for this process and what it runs. Returns which one the system refuses.
    pub(in super::super) fn restrict(restrictions: &Restrictions) -> Result<FileIsolation, String> {
        end_with_parent(restrictions.parent)?;
        // Without effect where it is not allowed: then the kernel may end another process first.
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
        limit_resources(restrictions)?;
        // Best effort: kernels before 5.13 have no Landlock, others have it switched off.
        let files = match restrict_files(restrictions) {
            Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => {
                FileIsolation::Enforced
            }
            Ok(RulesetStatus::NotEnforced) | Err(_) => FileIsolation::Unsupported,
        };
        deny_system_calls(restrictions.program.is_some())?;
        if TcpListener::bind(("127.0.0.1", 0)).is_ok() {
            return Err("a socket can be opened in spite of seccomp".to_owned());
        }
        Ok(files)
    }

    /// Denies new processes to this one and to the program that it is about to become.
    pub(in super::super) fn forbid_processes() -> Result<(), String> {
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| error.to_string())?;
        apply(process_rules()?, libc::EPERM)
    }

    fn end_with_parent(parent: u32) -> Result<(), String> {
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|error| format!("the parent-death signal: {error}"))?;
        let now = getppid().and_then(|id| u32::try_from(id.as_raw_pid()).ok());
        if now == Some(parent) {
            Ok(())
        } else {
            Err("the process that started it has ended".to_owned())
        }
    }

    fn limit_resources(restrictions: &Restrictions) -> Result<(), String> {
        for (resource, name, wanted) in [
            (Resource::Core, "core file", 0),
            (Resource::Data, "memory", restrictions.memory_bytes_max),
            (Resource::Cpu, "processor time", restrictions.cpu_seconds_max),
            (Resource::Fsize, "file size", restrictions.file_bytes_max),
            (Resource::Nofile, "open files", OPEN_FILES_MAX),
        ] {
            let hard = getrlimit(resource).maximum.map_or(wanted, |maximum| maximum.min(wanted));
            let limit = Rlimit { current: Some(hard), maximum: Some(hard) };
            setrlimit(resource, limit).map_err(|error| format!("the limit of {name}: {error}"))?;
        }
        Ok(())
    }

    /// Allows reading the libraries and the program, and writing to the directory; denies every other file and TCP.
    fn restrict_files(restrictions: &Restrictions) -> Result<RulesetStatus, RulesetError> {
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?;
        let Some(program) = &restrictions.program else {
            return Ok(ruleset.restrict_self()?.ruleset);
        };
        let programs = [program.as_path(), Path::new("/proc/self/exe")];
        let write =
            AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::MakeDir | AccessFs::Truncate;
        let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
        let null: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile;
        ruleset
            .add_rules(path_beneath_rules(programs, AccessFs::from_read(LANDLOCK)))?
            .add_rules(path_beneath_rules(LIBRARIES, AccessFs::from_read(LANDLOCK)))?
            .add_rules(path_beneath_rules(["/dev/null"], null))?
            .add_rules(path_beneath_rules(restrictions.directory.iter(), read | write))?
            .restrict_self()
            .map(|status| status.ruleset)
    }

    fn deny_system_calls(runs_programs: bool) -> Result<(), String> {
        let mut denied = rules_for(DENIED);
        // Limits may be read and not changed.
        let changes = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0);
        add_rule(&mut denied, libc::SYS_prlimit64, changes)?;
        if !runs_programs {
            denied.extend(rules_for(&[libc::SYS_execve, libc::SYS_execveat]));
            denied.extend(process_rules()?);
        }
        apply(denied, libc::EPERM)?;
        // The C library and Go fall back to `clone`, whose flags a filter can see.
        apply(rules_for(&[libc::SYS_clone3]), libc::ENOSYS)
    }

    /// Denies processes and allows threads.
    fn process_rules() -> Result<Rules, String> {
        #[cfg(target_arch = "x86_64")]
        let mut rules = rules_for(&[libc::SYS_fork, libc::SYS_vfork]);
        #[cfg(not(target_arch = "x86_64"))]
        let mut rules = Rules::new();
        let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
        let is_process =
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0);
        add_rule(&mut rules, libc::SYS_clone, is_process)?;
        Ok(rules)
    }

    fn numbers_of(call: i64) -> impl Iterator<Item = i64> {
        #[cfg(target_arch = "x86_64")]
        let others = [call | X32_BIT];
        #[cfg(not(target_arch = "x86_64"))]
        let others = [];
        std::iter::once(call).chain(others)
    }

    fn rules_for(calls: &[i64]) -> Rules {
        calls.iter().flat_map(|call| numbers_of(*call)).map(|number| (number, Vec::new())).collect()
    }

    fn add_rule(
        rules: &mut Rules,
        call: i64,
        condition: Result<SeccompCondition, seccompiler::BackendError>,
    ) -> Result<(), String> {
        let condition = condition.map_err(|error| refused(&error))?;
        for number in numbers_of(call) {
            let rule =
                SeccompRule::new(vec![condition.clone()]).map_err(|error| refused(&error))?;
            rules.insert(number, vec![rule]);
        }
        Ok(())
    }

    fn apply(rules: Rules, errno: i32) -> Result<(), String> {
        let architecture = std::env::consts::ARCH.try_into().map_err(|error| refused(&error))?;
        let denial = SeccompAction::Errno(errno.unsigned_abs());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, denial, architecture)
            .map_err(|error| refused(&error))?;
        let program: BpfProgram = filter.try_into().map_err(|error| refused(&error))?;
        seccompiler::apply_filter(&program).map_err(|error| format!("seccomp: {error}"))
    }

    fn refused(error: &seccompiler::BackendError) -> String {
        format!("seccomp: {error}")
    }
}
