//! The memory of this machine and of this process: what there is, what is free, what cgroups and the process's own limits
//! leave of that, and what the process has. It reads Linux's tables and knows nothing of what the memory is for.

use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{Error, ErrorKind};

/// Memory is short when less than one part in so many is left.
const SHORT_PART: u64 = 16;
/// How often it is looked at: what fills a small board takes a second or more.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The memory available to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What the machine has.
    pub total_bytes: u64,
    /// What this process can still take before the kernel swaps or kills: the least of what the kernel has left and of
    /// what its cgroups leave. Pages of files that the kernel can drop count as free.
    pub available_bytes: u64,
    /// The least limit of the cgroups that the process is in; none where they set none below the total.
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

impl Memory {
    /// Whether so little is left that the kernel will soon take from somebody.
    pub(crate) fn is_short(&self) -> bool {
        self.available_bytes < self.limit_bytes.unwrap_or(self.total_bytes) / SHORT_PART
    }
}

/// What the kernel may not have counted yet of a process's memory: 64 pages of a thread.
const COUNTED_BYTES: u64 = 256 << 10;
/// A process is near its budget when less than one part in so many of it is left.
const NEAR_PART: u64 = 64;

/// Where it is read how much memory this process has; tests put other readings in the kernel's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readings {
    /// [`resident_bytes`].
    pub(crate) resident_bytes: fn() -> Option<u64>,
    /// [`peak_bytes`].
    pub(crate) peak_bytes: fn() -> Option<u64>,
}

impl Readings {
    /// The kernel's.
    pub(crate) const OF_THIS_PROCESS: Self = Self { resident_bytes, peak_bytes };
}

/// The budget that this process is held to while something runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// None where nothing was promised.
    budget_bytes: Option<u64>,
    /// The highest point before.
    peak_before_bytes: u64,
    readings: Readings,
}

impl Held {
    /// From now on.
    pub(crate) fn to(budget_bytes: Option<u64>, readings: Readings) -> Self {
        Self { budget_bytes, peak_before_bytes: (readings.peak_bytes)().unwrap_or(0), readings }
    }

    /// Whether the process has so much that it should give back what it can spare.
    pub(crate) fn is_near(self) -> bool {
        let Some(budget_bytes) = self.budget_bytes else { return false };
        (self.readings.resident_bytes)().is_some_and(|bytes| bytes > budget_bytes - budget_bytes / NEAR_PART)
    }

    /// [`ErrorKind::Memory`] when the process has had more than the budget since it was held to it, up to the end of `stage`.
    pub(crate) fn check(self, stage: &str) -> Result<(), Error> {
        match (self.budget_bytes, (self.readings.peak_bytes)()) {
            (Some(budget_bytes), Some(peak_bytes)) => self.check_peak(stage, budget_bytes, peak_bytes),
            _ => Ok(()),
        }
    }

    fn check_peak(self, stage: &str, budget_bytes: u64, peak_bytes: u64) -> Result<(), Error> {
        if peak_bytes <= budget_bytes.saturating_add(COUNTED_BYTES) || peak_bytes <= self.peak_before_bytes {
            return Ok(());
        }
        let kib = |bytes: u64| bytes >> 10;
        Err(Error::new(
            ErrorKind::Memory,
            format!(
                "{stage}: memory: expected at most {} KiB, the budget, got {} KiB",
                kib(budget_bytes),
                kib(peak_bytes)
            ),
        )
        .help("give it a larger budget; that the plan was too low is a bug in calotype"))
    }
}

/// [`ErrorKind::Memory`] when this process has had more than a budget at any time, up to the end of `stage`.
pub fn check_budget(stage: &str, budget_bytes: u64) -> Result<(), Error> {
    let readings = Readings::OF_THIS_PROCESS;
    Held { budget_bytes: Some(budget_bytes), peak_before_bytes: 0, readings }.check(stage)
}

/// A thread that looks at the memory while something runs, so that those who ask need not.
pub(crate) struct Watch {
    is_short: Arc<AtomicBool>,
    /// Dropped to end it.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to look, with `is_short`; without a thread, where the system gives none, memory is never short.
    pub(crate) fn start(is_short: impl Fn() -> bool + Send + 'static) -> Self {
        let found = Arc::new(AtomicBool::new(is_short()));
        let (end, ended) = channel();
        let told = Arc::clone(&found);
        let look = move || {
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                told.store(is_short(), Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("calotype-memory".into()).spawn(look).ok();
        Self { is_short: found, end: Some(end), thread }
    }

    /// Whether memory was short at the last look.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

/// How much of the memory this process has: pages of its own, and of the files that it has mapped. Only Linux says.
pub fn resident_bytes() -> Option<u64> {
    own("VmRSS")
}

/// The most of [`resident_bytes`] since the process began.
pub fn peak_bytes() -> Option<u64> {
    own("VmHWM")
}

/// How much of the code that this process has mapped is not in memory yet. Of which pages come in with one that runs the page
/// cache decides: of a program that has just been read, nearly all. Nothing where the system does not say.
pub(crate) fn absent_code_bytes() -> u64 {
    absent_code_in(&fs::read_to_string("/proc/self/smaps").unwrap_or_default())
}

/// The same by the text of `/proc/self/smaps`.
fn absent_code_in(table: &str) -> u64 {
    let (mut is_code, mut absent_kib) = (false, 0u64);
    for line in table.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        let kib = || second.parse::<u64>().unwrap_or(0);
        match first {
            "Size:" if is_code => absent_kib += kib(),
            "Rss:" if is_code => absent_kib = absent_kib.saturating_sub(kib()),
            _ if first.ends_with(':') => {}
            // A mapping: its addresses, permissions, offset, device and inode.
            _ => is_code = second.contains('x') && words.nth(2).is_some_and(|inode| inode != "0"),
        }
    }
    absent_kib.saturating_mul(1024)
}

/// How much more this process may map: what its limits of address space and of data (`ulimit -v`, `ulimit -d`) leave.
/// Nothing where there are no such limits, or where the kernel does not say.
pub fn mappable_bytes() -> Option<u64> {
    let left = |limit: &str, used: &str| Some(limit_of(limit)?.saturating_sub(own(used)?));
    let left = [left("Max address space", "VmSize"), left("Max data size", "VmData")];
    left.into_iter().flatten().min()
}

/// How much a thread's stack takes of the address space where its maker does not say: what the main thread's may.
pub(crate) fn stack_bytes() -> usize {
    const USUAL_BYTES: u64 = 8 << 20;
    limit_of("Max stack size").unwrap_or(USUAL_BYTES) as usize
}

/// A limit of this process, where it is a number and not `unlimited`.
fn limit_of(name: &str) -> Option<u64> {
    let mut room = [0; TABLE_BYTES];
    let limits = table("/proc/self/limits", &mut room)?;
    number(rows(limits).find_map(|row| row.strip_prefix(name.as_bytes()))?)
}

/// The tables that are read here are shorter, or have the rows that are asked for before that.
const TABLE_BYTES: usize = 4096;

/// A row of this process's status, in bytes.
fn own(name: &str) -> Option<u64> {
    let mut room = [0; TABLE_BYTES];
    let status = table("/proc/self/status", &mut room)?;
    let row = rows(status).find_map(|row| row.strip_prefix(name.as_bytes())?.strip_prefix(b":"))?;
    number(row)?.checked_mul(1024)
}

/// The beginning of one of the kernel's tables. Nothing is allocated: this is asked when there may be nothing to allocate.
fn table<'a>(path: &str, room: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut file = fs::File::open(path).ok()?;
    let mut len = 0;
    loop {
        match file.read(&mut room[len..]) {
            Ok(0) => return Some(&room[..len]),
            Ok(more) => len += more,
            Err(_) => return None,
        }
    }
}

fn rows(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    table.split(|byte| *byte == b'\n')
}

/// The number that a row begins with.
fn number(row: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(row.trim_ascii()).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// One of the two interfaces of cgroups; a machine may have both.
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
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

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
    fn code_of_files_that_is_not_in_memory_is_counted() {
        let table = "\
5600000-5a00000 r--p 00000000 fe:01 4213 /usr/bin/calotype
Size: 4096 kB
Rss: 4 kB
5a00000-5b00000 r-xp 00400000 fe:01 4213 /usr/bin/calotype
Size: 1024 kB
KernelPageSize: 4 kB
Rss: 1000 kB
6a00000-6b00000 r-xp 00000000 fe:01 17 /usr/lib/libonnxruntime.so
Size: 512 kB
Rss: 500 kB
7000000-7001000 r-xp 00000000 00:00 0 [vdso]
Size: 4 kB
Rss: 0 kB
";
        assert_eq!(absent_code_in(table), (24 + 12) << 10);
        assert_eq!(absent_code_in(""), 0);
        // An emulator shows its own tables in part.
        assert!(absent_code_bytes() < 1 << 30);
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

    #[test]
    fn a_budget_is_held_from_its_start() {
        let readings = Readings::OF_THIS_PROCESS;
        let held = |peak_before_bytes| Held { budget_bytes: Some(100 * MIB), peak_before_bytes, readings };
        let check =
            |held: Held, peak| held.check_peak("unet", 100 * MIB, peak).map_err(|error| error.to_string());
        assert_eq!(check(held(0), 100 * MIB + COUNTED_BYTES), Ok(()));
        let refusal = check(held(0), 101 * MIB).unwrap_err();
        assert!(
            refusal.starts_with("unet: memory: expected at most 102400 KiB, the budget, got 103424 KiB"),
            "{refusal}"
        );
        // What the process had before is not the run's.
        assert_eq!(check(held(150 * MIB), 150 * MIB), Ok(()));
        assert!(check(held(150 * MIB), 151 * MIB).is_err());
    }

    /// The kernel's tables, read without the heap, say what they say.
    #[test]
    #[cfg(target_os = "linux")]
    fn what_this_process_has() {
        let before = resident_bytes().unwrap();
        let block = vec![1u8; 64 << 20];
        let (resident, peak) = (resident_bytes().unwrap(), peak_bytes().unwrap());
        assert!(resident >= before + (48 << 20) && peak >= resident, "{before} {resident} {peak}");
        let is_near = |budget| Held::to(budget, Readings::OF_THIS_PROCESS).is_near();
        assert!(!is_near(None) && is_near(Some(1)) && !is_near(Some(u64::MAX)));
        drop(block);
        assert!((1 << 16..1 << 40).contains(&stack_bytes()));
    }

    #[test]
    fn short_is_what_leaves_a_sixteenth() {
        let memory = |available_bytes, limit_bytes| Memory {
            total_bytes: 1600,
            available_bytes,
            limit_bytes,
            swap_bytes: 0,
        };
        assert_eq!([99, 100].map(|left| memory(left, None).is_short()), [true, false]);
        assert_eq!([9, 10].map(|left| memory(left, Some(160)).is_short()), [true, false]);
    }

    #[test]
    fn what_is_watched_is_told_until_it_ends() {
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&looks);
        let watch = Watch::start(move || counted.fetch_add(1, Ordering::Relaxed) >= 1);
        assert!(!watch.is_short());
        let started = Instant::now();
        while !watch.is_short() {
            assert!(started.elapsed() < Duration::from_secs(60), "expected another look");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(watch);
        // The thread is gone, and with it what it looked with.
        assert_eq!(Arc::strong_count(&looks), 1);
    }
}
