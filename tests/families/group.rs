//! Programs within a memory limit of the kernel's: a cgroup (cgroup) of version 1 or 2, where one can be made.
//! It knows nothing of what runs in it.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Less than this is no limit for a process: none could be started.
const LEAST_BYTES: u64 = 64 << 20;

/// A command that runs a program within this limit, and the group, which must live as long as the command runs; without one
/// where none can be made.
pub fn limited(program: &str, limit_bytes: u64) -> (Command, Option<Group>) {
    let group = Group::new(limit_bytes);
    let Some(place) = &group else { return (Command::new(program), None) };
    let mut command = Command::new("sh");
    command.args(["-c", "echo 0 > \"$0\"/cgroup.procs && exec \"$@\""]).arg(&place.0).arg(program);
    (command, group)
}

/// A memory cgroup of version 1 or 2 for one run; its folder.
pub struct Group(PathBuf);

impl Group {
    /// None for so little that no process could start, and where none can be made.
    fn new(limit_bytes: u64) -> Option<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("calotype-test-{}-{number}", std::process::id());
        let places = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        let (root, limit) = places.iter().find(|(root, _)| {
            Path::new(root).join("memory.stat").exists()
                || Path::new(root).join("memory.limit_in_bytes").exists()
        })?;
        if limit_bytes < LEAST_BYTES {
            return None;
        }
        let folder = Path::new(root).join(name);
        fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        fs::write(group.0.join(limit), limit_bytes.to_string()).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
