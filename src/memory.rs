//! The memory of this machine: what it has, what is free, and what a control group leaves of that.
//! It reads Linux's tables and knows nothing of what the memory is for.

use std::fs;

/// What this process has to live on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What the machine has.
    pub total_bytes: u64,
    /// What this process can still take before the kernel swaps or kills: the least of what the kernel has left and of
    /// what its control groups leave. Pages of files that the kernel can drop count as free.
    pub available_bytes: u64,
    /// The least limit of the control groups that the process is in; none where they set none below the total.
    pub limit_bytes: Option<u64>,
    /// Room on disk for pages that are not used; 0 where there is none.
    pub swap_bytes: u64,
}

impl Memory {
    /// What the kernel says now; nothing on other systems than Linux, whose tables it reads, and on kernels before 3.14,
    /// which do not say what is available.
    pub fn of_this_machine() -> Option<Self> {
        Self::read(|path| fs::read_to_string(path).ok())
    }

    /// What these files say; `file` gives the text of one, if there is such a file.
    fn read(file: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let table = file("/proc/meminfo")?;
        let row = |name: &str| {
            let rest = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        let mut memory = Self {
            total_bytes: row("MemTotal")?,
            available_bytes: row("MemAvailable")?,
            limit_bytes: None,
            swap_bytes: row("SwapTotal").unwrap_or(0),
        };
        for group in file("/proc/self/cgroup").iter().flat_map(|groups| groups.lines()) {
            let Some((version, path)) = Version::of(group) else { continue };
            // A limit holds for all that is below it. In a container the path may be one of the host, of which only
            // the root is seen here, and that is then the container's own group.
            let mut rest = Some(path.trim_end_matches('/'));
            while let Some(path) = rest {
                let folder = format!("{}{path}", version.root);
                if let Some((limit, used)) = version.limit(|name| file(&format!("{folder}/{name}")))
                    && limit < memory.total_bytes
                {
                    memory.limit_bytes = Some(memory.limit_bytes.map_or(limit, |least| least.min(limit)));
                    memory.available_bytes = memory.available_bytes.min(limit.saturating_sub(used));
                }
                rest = path.rfind('/').map(|slash| &path[..slash]);
            }
        }
        Some(memory)
    }
}

/// How much of the memory this process has: pages of its own, and of the files that it has mapped. Only Linux says.
pub fn resident_bytes() -> Option<u64> {
    of_status("VmRSS")
}

/// The most of [`resident_bytes`] since the process began.
pub fn peak_bytes() -> Option<u64> {
    of_status("VmHWM")
}

fn of_status(name: &str) -> Option<u64> {
    let table = fs::read_to_string("/proc/self/status").ok()?;
    let row = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    row.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// One of the two interfaces of control groups; a machine may have both.
struct Version {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Rows of `memory.stat`: pages of files, of those below included.
    file_rows: [&'static str; 2],
}

impl Version {
    const ONE: Self = Self {
        root: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        file_rows: ["total_inactive_file", "total_active_file"],
    };
    const TWO: Self = Self {
        root: "/sys/fs/cgroup",
        limit: "memory.max",
        usage: "memory.current",
        file_rows: ["inactive_file", "active_file"],
    };

    /// Of a line of `/proc/self/cgroup`, `number:controllers:path`, that can limit memory.
    fn of(line: &str) -> Option<(Self, &str)> {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        match controllers {
            "" => Some((Self::TWO, path)),
            some if some.split(',').any(|name| name == "memory") => Some((Self::ONE, path)),
            _ => None,
        }
    }

    /// The limit that a group sets, and what of it is used but for what can be dropped; nothing for `max`.
    fn limit(&self, file: impl Fn(&str) -> Option<String>) -> Option<(u64, u64)> {
        let number = |name: &str| file(name)?.trim().parse::<u64>().ok();
        let limit = number(self.limit)?;
        let stat = file("memory.stat").unwrap_or_default();
        let rows = stat.lines().filter_map(|line| line.split_once(' '));
        let file_bytes = rows
            .filter(|(name, _)| self.file_rows.contains(name))
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .fold(0, u64::saturating_add);
        Some((limit, number(self.usage).unwrap_or(0).saturating_sub(file_bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured on Linux 6.1; the rows between are left out.
    const MEMINFO: &str = "MemTotal:       24684084 kB\nMemFree:        22303548 kB\nMemAvailable:   23346976 kB\n\
                           Buffers:            7000 kB\nCached:          1150568 kB\nSwapCached:            0 kB\n\
                           SwapTotal:       2097148 kB\nSwapFree:        2097148 kB\n";
    const TOTAL: u64 = 24_684_084 << 10;
    const AVAILABLE: u64 = 23_346_976 << 10;
    const MIB: u64 = 1 << 20;

    fn read(files: &[(&str, &str)]) -> Option<Memory> {
        Memory::read(|path| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()))
    }

    #[track_caller]
    fn is_limited(groups: &[(&str, &str)], limit: Option<u64>, available: u64) {
        let files = [&[("/proc/meminfo", MEMINFO)], groups].concat();
        let expected = Memory {
            total_bytes: TOTAL,
            available_bytes: available,
            limit_bytes: limit,
            swap_bytes: 2_097_148 << 10,
        };
        assert_eq!(read(&files), Some(expected));
    }

    #[test]
    fn no_group_leaves_all() {
        is_limited(&[], None, AVAILABLE);
        is_limited(&[("/proc/self/cgroup", "0::/user.slice\n")], None, AVAILABLE);
    }

    #[test]
    fn version_two_in_its_own_namespace() {
        let files = [
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/memory.max", "536870912\n"),
            ("/sys/fs/cgroup/memory.current", "104857600\n"),
            (
                "/sys/fs/cgroup/memory.stat",
                "anon 41943040\nfile 62914560\ninactive_file 20971520\nactive_file 10485760\n",
            ),
        ];
        is_limited(&files, Some(512 * MIB), (512 - 100 + 20 + 10) * MIB);
    }

    #[test]
    fn the_least_limit_on_the_way_up_holds() {
        let files = [
            ("/proc/self/cgroup", "0::/a.slice/b.service\n"),
            ("/sys/fs/cgroup/a.slice/b.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/a.slice/b.service/memory.current", "1048576\n"),
            ("/sys/fs/cgroup/a.slice/memory.max", "1073741824\n"),
            ("/sys/fs/cgroup/a.slice/memory.current", "1048576\n"),
            ("/sys/fs/cgroup/memory.max", "2147483648\n"),
        ];
        is_limited(&files, Some(1024 * MIB), 1023 * MIB);
    }

    #[test]
    fn version_one_beside_an_empty_version_two() {
        let files = [
            ("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/box/1c64\n0::/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/box/1c64/memory.limit_in_bytes", "314572800\n"),
            ("/sys/fs/cgroup/memory/box/1c64/memory.usage_in_bytes", "209715200\n"),
            (
                "/sys/fs/cgroup/memory/box/1c64/memory.stat",
                "inactive_file 1\ntotal_inactive_file 104857600\n",
            ),
        ];
        is_limited(&files, Some(300 * MIB), 200 * MIB);
    }

    #[test]
    fn a_container_sees_its_group_at_the_root() {
        let files = [
            ("/proc/self/cgroup", "4:memory:/docker/0123\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "314572800\n"),
        ];
        is_limited(&files, Some(300 * MIB), 300 * MIB);
    }

    #[test]
    fn a_group_that_is_full_leaves_nothing() {
        let files = [
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/memory.max", "1048576\n"),
            ("/sys/fs/cgroup/memory.current", "2097152\n"),
        ];
        is_limited(&files, Some(MIB), 0);
    }

    #[test]
    fn tables_that_say_nothing_or_nonsense() {
        assert_eq!(read(&[]), None);
        for table in [
            "",
            "MemTotal: 1 kB\n",
            "MemTotal: 1 kB\nMemAvailable: one kB\n",
            "MemTotal: 1 kB\nMemAvailable: 18446744073709551615 kB\n",
        ] {
            assert_eq!(read(&[("/proc/meminfo", table)]), None, "{table:?}");
        }
        for line in ["", ":", "::", "0::", "no colon", "4:memory", "0::/../..", "0:memory:é"] {
            is_limited(&[("/proc/self/cgroup", line)], None, AVAILABLE);
        }
        let odd = [("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "-1\n")];
        is_limited(&odd, None, AVAILABLE);
    }

    #[test]
    fn this_machine_has_some() {
        if cfg!(target_os = "linux") {
            let memory = Memory::of_this_machine().expect("a kernel that says what it has");
            assert!(memory.available_bytes > 0 && memory.available_bytes <= memory.total_bytes, "{memory:?}");
        }
    }
}
